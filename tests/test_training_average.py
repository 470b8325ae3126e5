"""The moving average: its numbers, that it is what is shown and kept, and that training goes on."""

import copy
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from torch import Tensor
from training_toys import CPU, make_batches, no_gradients, settings

from shira_diffusion import Adapter, AdapterInfo
from training import methods
from training.config import METHODS
from training.errors import ConfigError
from training.loop import Loop
from training.methods.content import write
from training.objective import Objective
from training.passes import Launched
from training.settings import load_config

# The toy's layers are too small to share between cores: on busy ones that costs minutes.
torch.set_num_threads(1)


def start(base: Path, stored: dict[str, object] | None = None, **changes: object) -> Loop:
    pipe = StableDiffusionXLPipeline.from_pretrained(base, dtype=torch.float32)
    config = settings(rank=2, steps=6, **changes)
    method = methods.create(config, pipe.unet, no_gradients, stored["method"] if stored else None)
    return Loop(config, method, Objective.of(pipe, CPU), make_batches(pipe), CPU)


def values(loop: Loop) -> list[Tensor]:
    return [value.detach().clone() for value in loop._method.parameters()]


@torch.no_grad()
def loss(loop: Loop) -> float:
    """What the UNet as it stands makes of a batch."""
    assert isinstance(loop._pass, Launched)
    return float(loop._pass._objective.loss(loop._batches.draw(99, CPU)))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("decay", [0.2, 0.99])
def test_the_average_is_shown_for_a_block(toy_base: Path, method: str, decay: float) -> None:
    loop = start(toy_base, method=method, ema=decay)
    plain: list[Tensor] = []
    for result in loop.run():
        number = result.step
        kept = 0.0 if number == 1 else min(decay, number / (number + 9))
        now = values(loop)
        earlier = plain or now
        plain = [kept * old + (1 - kept) * new for old, new in zip(earlier, now, strict=True)]
    raw, live = values(loop), loss(loop)
    with loop.averaged():
        for shown, expected in zip(values(loop), plain, strict=True):
            torch.testing.assert_close(shown, expected)
        assert loss(loop) != live
    assert all(torch.equal(*pair) for pair in zip(values(loop), raw, strict=True))
    assert loss(loop) == live


def test_a_failing_block_gets_the_values_back(toy_base: Path) -> None:
    loop = start(toy_base, ema=0.9)
    list(loop.run())
    raw, live = values(loop), loss(loop)
    with pytest.raises(RuntimeError, match="a bad sample"), loop.averaged():
        raise RuntimeError("a bad sample")
    assert all(torch.equal(*pair) for pair in zip(values(loop), raw, strict=True))
    assert loss(loop) == live


def test_the_average_is_exported_and_changes_no_step(toy_base: Path, tmp_path: Path) -> None:
    changes = {"lr": 5e-2, "schedule": "constant"}
    with_average, without = start(toy_base, ema=0.9, **changes), start(toy_base, **changes)
    losses = [[result.loss for result in loop.run()] for loop in (with_average, without)]
    assert losses[0] == losses[1]
    with without.averaged():
        write({"unet": without._method.content()}, tmp_path / "raw.safetensors", AdapterInfo("x"))
    with with_average.averaged():
        write(
            {"unet": with_average._method.content()},
            tmp_path / "average.safetensors",
            AdapterInfo("x"),
        )
        (shown,) = values(with_average)
    (raw,) = values(with_average)
    pairs = [Adapter.load(tmp_path / f"{name}.safetensors").deltas for name in ("average", "raw")]
    found = [torch.cat([delta.values.float() for delta in deltas.values()]) for deltas in pairs]
    torch.testing.assert_close(found[0] - found[1], shown - raw, rtol=0, atol=4e-4)
    assert (shown - raw).abs().max() > 2e-3


def test_a_resumed_run_has_the_same_average(toy_base: Path) -> None:
    loop = start(toy_base, ema=0.9)
    for result in loop.run():
        if result.step == 3:
            stored = copy.deepcopy(loop.state())
    resumed = start(toy_base, stored, ema=0.9)
    resumed.restore(stored)
    list(resumed.run())
    with loop.averaged(), resumed.averaged():
        assert all(torch.equal(*pair) for pair in zip(values(loop), values(resumed), strict=True))


def test_a_decay_of_one_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "preset.toml"
    path.write_text('data = "ink"\nema = 1.0\n')
    with pytest.raises(ConfigError, match=r"ema = 1\.0 is not at least 0 and below 1"):
        load_config(path)
