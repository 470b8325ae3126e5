"""A run that is killed at any moment goes on from its last good checkpoint, to the same end."""

import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from training.__main__ import main
from training.checkpoint import Checkpoints
from training.events import EventLog

# A process that is forked from one with several threads may wait for one of them forever.
torch.set_num_threads(1)

STEPS = 24


@pytest.fixture
def settings(toy_base: Path, tmp_path: Path) -> list[str]:
    (tmp_path / "ink").mkdir()
    for name in ("castle", "robot"):
        Image.new("RGB", (32, 32), "grey").save(tmp_path / "ink" / f"{name}.png")
    return [
        f"base={toy_base}",
        f"data={tmp_path / 'ink'}",
        f"cache_dir={tmp_path / 'cache'}",
        "name=ink",
        "instance_prompt=a castle, ink style",
        "device=cpu",
        "density=0.2",
        f"steps={STEPS}",
        "checkpoint_every=1",
        "sample_steps=1",
    ]


def call(settings: list[str], place: Path, *flags: str) -> int:
    where = [f"run={place / 'run'}", f"adapters_dir={place / 'adapters'}"]
    return main(["quick", *flags, "--set", *settings, *where])


def killed_after(step: int, delay: float, settings: list[str], place: Path, *flags: str) -> None:
    """Train in a process of its own, and kill it `delay` seconds after it has logged `step`."""
    process = multiprocessing.get_context("fork").Process(
        target=call, args=(settings, place, *flags)
    )
    process.start()
    log = EventLog(place / "run" / "events.jsonl")
    deadline = time.monotonic() + 60
    while not any(row["step"] >= step for row in log.find("step")):
        assert process.is_alive(), "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    time.sleep(delay)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert process.exitcode == -signal.SIGKILL, "it had ended before"


def test_a_killed_run_ends_as_if_it_had_not_been(settings: list[str], tmp_path: Path) -> None:
    assert call(settings, tmp_path / "whole") == 0
    chance = random.Random(5)
    place = tmp_path / "killed"
    checkpoints = Checkpoints(place / "run" / "checkpoints", keep=2)
    flags: list[str] = []
    for target in (2, 5, 8, 11):
        killed_after(target, chance.uniform(0, 0.03), settings, place, *flags)
        assert checkpoints.load()["step"] == checkpoints.steps()[-1] >= target - 1
        assert not (place / "adapters").exists()
        flags = ["--resume"]
    assert call(settings, place, *flags) == 0
    one, two = (
        (tmp_path / name / "adapters" / "ink" / "adapter.safetensors").read_bytes()
        for name in ("whole", "killed")
    )
    assert one == two
    assert not [path for path in checkpoints.folder.iterdir() if path.name.startswith(".")]
