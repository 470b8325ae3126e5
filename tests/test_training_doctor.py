"""The dry run: it tells what a run would do and what is wrong, and leaves no trace."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from PIL import Image
from torch.profiler import ProfilerActivity, profile

from shira_diffusion import masks
from shira_diffusion.pipeline import target_weights
from training import methods
from training.__main__ import main
from training.config import Config
from training.machine import Machine
from training.memory import Footprint, PeakMemory, _blank, footprint
from training.objective import Objective

# The toy's layers are too small to share between cores: on busy ones that costs minutes.
torch.set_num_threads(1)

CPU = Machine(torch.device("cpu"), torch.float32)
Doctor = Callable[..., int]


@pytest.fixture
def doctor(toy_base: Path, tmp_path: Path) -> Doctor:
    """Runs the command line on two pictures and the toy base; settings come as keywords."""
    data = tmp_path / "ink"
    data.mkdir()
    for name, size in (("castle", (40, 32)), ("robot", (16, 64))):
        Image.new("RGB", size, "black").save(data / f"{name}.png")
        (data / f"{name}.txt").write_text(f"a {name}, ink style")
    places = {"base": toy_base, "data": data, "run": tmp_path / "run", "cache_dir": tmp_path / "c"}
    preset = tmp_path / "preset.toml"
    lines = [f'{key} = "{value.as_posix()}"' for key, value in places.items()]
    preset.write_text("\n".join([*lines, 'device = "cpu"', "steps = 9", "batch = 2"]))

    def call(*flags: str, **settings: Any) -> int:
        settings = {"adapters_dir": tmp_path / "adapters", **settings}
        overrides = [f"{key}={value}" for key, value in settings.items()]
        return main([str(preset), "--dry-run", *flags, "--set", *overrides])

    return call


def everything(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_good_run_is_described_and_nothing_is_written(
    doctor: Doctor,
    tmp_path: Path,
    toy_pipe: StableDiffusionXLPipeline,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = everything(tmp_path)
    assert doctor(density=0.2, accumulation=3) == 0
    captured = capsys.readouterr()
    weights = target_weights(toy_pipe.unet, ["attention"]).values()
    trained = sum(masks.count(weight.numel(), 0.2) for weight in weights)
    for line in (
        "castle.png 40 x 32: a castle, ink style",
        "robot.png 16 x 64: a robot, ink style",
        "trigger words: ink style",
        "steps: 9 of 6 images = 27.0 epochs of 2",
        f"trained values: {trained:,}",
        "scaled up (replace them by larger ones, or set a lower resolution=): robot.png",
    ):
        assert line in captured.out
    assert captured.err == ""
    assert everything(tmp_path) == before


@pytest.mark.parametrize(
    "settings", [{"mask": "snip"}, {"mask": "grad", "budget": "global"}, {"method": "lora"}]
)
def test_every_way_to_train_is_counted(
    doctor: Doctor, capsys: pytest.CaptureFixture[str], settings: dict[str, str]
) -> None:
    assert doctor(**settings) == 0
    assert "trained values: " in capsys.readouterr().out


def test_faults_of_all_parts_are_told_together(
    doctor: Doctor, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "ink" / "broken.png").write_text("no picture")
    (tmp_path / "adapters" / "ink").mkdir(parents=True)
    assert doctor(targets="atention") == 2
    faults = capsys.readouterr().err
    assert all(part in faults for part in ("broken.png", "already an adapter", "atention"))
    assert faults.count("fault: ") == 3


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"base": "/nowhere"}, "nowhere"),
        ({"device": "abacus"}, "abacus"),
        ({"resolution": 30}, "multiple of 8"),
        ({"maks": "rand"}, "did you mean mask"),
    ],
)
def test_each_fault_has_the_code_of_a_refused_run(
    doctor: Doctor, capsys: pytest.CaptureFixture[str], settings: dict[str, Any], expected: str
) -> None:
    assert doctor(**settings) == 2
    assert expected in capsys.readouterr().err


def test_bad_but_trainable_data_gets_remarks(
    doctor: Doctor, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "ink"
    (data / "twin.png").write_bytes((data / "castle.png").read_bytes())
    (data / "twin.txt").write_text("castle " * 99)
    assert doctor() == 0
    out = capsys.readouterr().out
    assert "castle.png, twin.png are the same picture" in out
    assert "the caption of twin.png has " in out


def test_graphs_that_cannot_be_had_are_remarked(
    doctor: Doctor, capsys: pytest.CaptureFixture[str]
) -> None:
    assert doctor(cuda_graphs="true") == 0
    assert "remark: cuda_graphs needs CUDA; this run is on cpu" in capsys.readouterr().out


def test_buckets_are_listed_and_small_ones_remarked(
    doctor: Doctor, capsys: pytest.CaptureFixture[str]
) -> None:
    assert doctor(buckets="true") == 0
    out = capsys.readouterr().out
    assert "bucket 32 x 32: 1 of the captioned images" in out
    assert "bucket 16 x 64: 1 of the captioned images" in out
    assert "bucket 16 x 64 has fewer images than a batch, which repeats them" in out
    assert "blurred" not in out, "both just fit their buckets"
    assert doctor() == 0
    assert "bucket 32 x 32: 2 of the captioned images" in capsys.readouterr().out


def test_resumable_run_is_checked_against_its_checkpoint(
    doctor: Doctor, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert doctor("--resume") == 2
    assert "no run" in capsys.readouterr().err
    places = ["--set", f"adapters_dir={tmp_path / 'adapters'}"]
    assert main([str(tmp_path / "preset.toml"), "--stop-after", "1", *places]) == 0
    assert doctor("--resume") == 0
    (tmp_path / "ink" / "robot.txt").write_text("another robot")
    assert doctor("--resume") == 2
    assert "data" in capsys.readouterr().err


def test_peak_counts_what_lives_at_once_and_shares_storage() -> None:
    known = torch.nn.Linear(10, 10)
    with PeakMemory(list(known.parameters())) as memory:
        first = torch.empty(100)
        view = first.view(10, 10)
        known.weight.detach()
        assert memory.now == 400
        del first
        assert memory.now == 400, "the view keeps it"
        del view
        second = torch.empty(50, dtype=torch.float64)
        assert memory.now == second.nbytes
    assert memory.peak == 400


def plan(pipe: StableDiffusionXLPipeline, count: int, method: str = "shira") -> Footprint:
    config = Config(data="x", name="x", method=method, density=0.2, rank=4)
    made = methods.create(config, pipe.unet, lambda _: {}, None)
    try:
        return footprint(pipe, made, Objective.of(pipe, CPU), config, count=count, size=(32, 32))
    finally:
        made.close()


@pytest.mark.parametrize("method", ["shira", "lora"])
def test_footprint_of_a_step_is_what_a_profiler_sees(
    toy_pipe: StableDiffusionXLPipeline, method: str
) -> None:
    found = plan(toy_pipe, 6, method).step
    config = Config(data="x", name="x", method=method, density=0.2, rank=4)
    made = methods.create(config, toy_pipe.unet, lambda _: {}, None)
    objective = Objective.of(toy_pipe, CPU)
    batch = _blank(toy_pipe, 6, (32, 32))
    objective.loss(batch).backward()
    for values in made.parameters():
        values.grad = None
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        objective.loss(batch).backward()
    now = peak = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    assert found == pytest.approx(peak, rel=0.05)


def test_checkpointing_needs_less_and_larger_batches_more(
    toy_pipe: StableDiffusionXLPipeline,
) -> None:
    small, large = plan(toy_pipe, 2), plan(toy_pipe, 8)
    assert 3 < large.step / small.step <= 4.1
    toy_pipe.unet.enable_gradient_checkpointing()
    assert plan(toy_pipe, 8).step < 0.7 * large.step
    assert large.unet == sum(weight.nbytes for weight in toy_pipe.unet.parameters())
