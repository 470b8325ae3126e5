"""Two processes of a run, each with its share of every batch, train what one does alone."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from accelerate import PartialState
from diffusers import StableDiffusionXLPipeline
from torch import Tensor
from torch.multiprocessing import start_processes  # type: ignore[attr-defined]
from training_toys import CPU, make_batches, no_gradients, settings

from training import methods
from training.config import METHODS
from training.loop import Loop
from training.machine import Machine
from training.objective import Objective
from training.texts import kept, live

# A process that is forked from one with several threads may wait for one of them forever.
torch.set_num_threads(1)

WORLD = 2
RUNS: dict[str, dict[str, Any]] = {method: {"method": method} for method in METHODS}
RUNS["texts"] = {"train_text_encoders": True, "new_token": "<ink>"}
RUNS["accumulation"] = {"accumulation": 2, "ema": 0.5}


def train(base: Path, run: str, machine: Machine) -> list[Tensor]:
    pipe = StableDiffusionXLPipeline.from_pretrained(base, dtype=torch.float32)
    config = settings(rank=2, density=0.2, steps=2, **RUNS[run])
    batches = make_batches(pipe, captions=("a castle, <ink> style", "a robot, <ink> style"))
    method = methods.create_all(config, pipe, no_gradients, None)
    texts = live(pipe) if config.texts_train else kept
    loop = Loop(config, method, Objective.of(pipe, machine, texts=texts), batches, machine)
    losses = [result.loss for result in loop.run()]
    return [torch.tensor(losses), *(value.detach().clone() for value in method.parameters())]


def worker(rank: int, base: str, folder: str) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(WORLD)}
    os.environ |= {"MASTER_ADDR": "localhost", "ACCELERATE_USE_CPU": "true"}
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=WORLD
    )
    PartialState._reset_state()  # of the process that this one is forked from
    machine = Machine.detect("cpu")
    assert (machine.rank, machine.world) == (rank, WORLD)
    found = {run: train(Path(base), run, machine) for run in RUNS}
    torch.save(found, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(toy_base: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of the processes has in the end."""
    folder = tmp_path_factory.mktemp("processes")
    start_processes(worker, args=(str(toy_base), str(folder)), nprocs=WORLD, start_method="fork")
    return [torch.load(folder / f"{rank}.pt") for rank in range(WORLD)]


@pytest.mark.parametrize("run", RUNS)
def test_two_processes_equal_one(toy_base: Path, found: list[dict[str, Any]], run: str) -> None:
    expected = train(toy_base, run, CPU)
    for first, second, wanted in zip(found[0][run], found[1][run], expected, strict=True):
        assert torch.equal(first, second)
        # Where a gradient is nearly 0, Adam turns its rounding into a part of a step.
        torch.testing.assert_close(first, wanted, rtol=1e-4, atol=5e-4)
