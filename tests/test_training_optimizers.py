"""Optimizers and schedules: which they are, that a resumed run is the same, what is missing."""

import copy
import importlib.util
import math
import sys
from pathlib import Path
from types import ModuleType

import prodigyopt
import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from torch import nn
from training_toys import CPU, make_batches, no_gradients, settings

from training import methods
from training.errors import ConfigError
from training.loop import Loop
from training.objective import Objective
from training.optimizers import create_optimizer, create_schedule, state_bytes
from training.settings import load_config

# The toy's layers are too small to share between cores: on busy ones that costs minutes.
torch.set_num_threads(1)


@pytest.mark.parametrize(
    ("method", "optimizer", "lr"),
    [
        ("shira", "adamw", 1e-2),
        ("shira", "adafactor", 1e-2),
        ("shira", "prodigy", 1.0),
        ("lora", "prodigy", 1.0),
    ],
)
def test_forty_steps_equal_twenty_and_twenty_bit_for_bit(
    toy_base: Path, method: str, optimizer: str, lr: float
) -> None:
    config = settings(
        method=method,
        rank=2,
        optimizer=optimizer,
        lr=lr,
        steps=40,
        schedule="cosine_with_restarts",
        schedule_cycles=3,
    )

    def start(stored: dict[str, object] | None) -> tuple[Loop, methods.Method]:
        pipe = StableDiffusionXLPipeline.from_pretrained(toy_base, dtype=torch.float32)
        method = methods.create(
            config, pipe.unet, no_gradients, stored["method"] if stored else None
        )
        return Loop(config, method, Objective.of(pipe, CPU), make_batches(pipe), CPU), method

    loop, whole = start(None)
    initial = [value.detach().clone() for value in whole.parameters()]
    expected = []
    for result in loop.run():
        expected.append((result.loss, result.lr))
        if result.step == 20:
            stored = copy.deepcopy(loop.state())
    loop, resumed = start(stored)
    loop.restore(stored)
    assert [(result.loss, result.lr) for result in loop.run()] == expected[20:]
    for left, right in zip(resumed.parameters(), whole.parameters(), strict=True):
        assert torch.equal(left, right)
    assert any(
        not torch.equal(left, right)
        for left, right in zip(initial, whole.parameters(), strict=True)
    )


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("adamw", torch.optim.AdamW),
        ("adafactor", torch.optim.Adafactor),
        ("prodigy", prodigyopt.Prodigy),
    ],
)
def test_optimizer_is_the_librarys_own_with_the_settings(name: str, kind: type) -> None:
    values = [nn.Parameter(torch.ones(3))]
    optimizer = create_optimizer(
        settings(optimizer=name, lr=0.5, weight_decay=0.25), [{"params": values}]
    )
    assert type(optimizer) is kind
    (group,) = optimizer.param_groups
    assert (group["lr"], group["weight_decay"], group["params"]) == (0.5, 0.25, values)


def test_eight_bit_adamw_is_the_one_of_bitsandbytes(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stub(torch.optim.SGD):
        pass

    package, module = ModuleType("bitsandbytes"), ModuleType("bitsandbytes.optim")
    module.AdamW8bit = Stub
    monkeypatch.setitem(sys.modules, "bitsandbytes", package)
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", module)
    values = [nn.Parameter(torch.ones(3))]
    assert type(create_optimizer(settings(optimizer="adamw8bit"), [{"params": values}])) is Stub


@pytest.mark.parametrize("cycles", [1, 3])
def test_cosine_restarts_as_often_as_asked(cycles: int) -> None:
    config = settings(
        schedule="cosine_with_restarts", schedule_cycles=cycles, steps=12, warmup=2, lr=0.5
    )
    optimizer = create_optimizer(config, [{"params": [nn.Parameter(torch.ones(3))]}])
    schedule = create_schedule(config, optimizer)
    for step in range(12):
        progress = (step - 2) / 10
        share = 0.5 + 0.5 * math.cos(math.pi * (cycles * progress % 1)) if step >= 2 else step / 2
        assert schedule.get_last_lr() == [pytest.approx(0.5 * share)]
        optimizer.step()
        schedule.step()


@pytest.mark.parametrize(
    ("name", "package"), [("adamw8bit", "bitsandbytes"), ("prodigy", "prodigyopt")]
)
def test_a_missing_package_is_named_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, package: str
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda wanted: None if wanted == package else find(wanted)
    )
    path = tmp_path / "preset.toml"
    path.write_text(f'data = "ink"\nlr = 1.0\noptimizer = "{name}"\n')
    with pytest.raises(ConfigError, match=f'"{name}" needs a package .* pip install {package}'):
        load_config(path)
    monkeypatch.undo()
    path.write_text('data = "ink"\noptimizer = "adamm"\n')
    with pytest.raises(ConfigError, match=r"is not one of .*did you mean adamw\?"):
        load_config(path)


def test_prodigy_asks_for_its_own_rate(tmp_path: Path) -> None:
    path = tmp_path / "preset.toml"
    path.write_text('data = "ink"\noptimizer = "prodigy"\n')
    with pytest.raises(ConfigError, match=r"lr = 0\.001 .* set lr=1"):
        load_config(path)
    assert load_config(path, ["lr=1"]).lr == 1.0


@pytest.mark.parametrize("name", ["adamw", "prodigy", "adafactor"])
@pytest.mark.parametrize("shape", [(4096,), (64, 96)])
def test_the_estimate_is_what_the_optimizer_keeps(name: str, shape: tuple[int, ...]) -> None:
    value = nn.Parameter(torch.ones(shape))
    optimizer = create_optimizer(settings(optimizer=name, lr=1.0), [{"params": [value]}])
    value.grad = torch.full(shape, 0.5)
    optimizer.step()
    kept = [part for part in optimizer.state[value].values() if isinstance(part, torch.Tensor)]
    # Step counters and the like are single numbers.
    assert state_bytes(name, value) == sum(part.nbytes for part in kept if part.numel() > 1)


def test_moments_of_8_bits_are_small() -> None:
    large = torch.zeros(1 << 20)
    assert state_bytes("adamw8bit", large) < 0.26 * state_bytes("adamw", large)
    assert state_bytes("adamw8bit", torch.zeros(10)) == state_bytes("adamw", torch.zeros(10))
