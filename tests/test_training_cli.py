"""Whole runs through the command line, on the toy base: what comes out, and what is refused."""

import base64
import io
import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partialmethod
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel
from huggingface_hub import constants
from PIL import Image

from shira_diffusion import Adapter, AdapterSwitcher
from shira_diffusion.formats import container
from training.__main__ import main
from training.config import METHODS, SPARSE
from training.export import Destination
from training.loop import Loop
from training.sampling import Sampler
from training.session import Session

# The toy's layers are too small to share between cores: on busy ones that costs minutes.
torch.set_num_threads(1)

PRESET = """
base = "{base}"
data = "{root}/ink"
run = "{root}/runs/ink"
adapters_dir = "{root}/adapters"
cache_dir = "{root}/cache"
device = "cpu"
density = 0.2
steps = 4
batch = 2
lr = 1e-2
checkpoint_every = 2
sample_steps = 2
prior_prompts = ["a red apple"]
prior_images = 2
prior_batch = 1
prior_steps = 2
"""

Train = Callable[..., int]


@pytest.fixture
def train(toy_base: Path, tmp_path: Path) -> Train:
    """Runs the command line on two pictures and the toy base; settings come as keywords."""
    (tmp_path / "ink").mkdir()
    for name, color in (("castle", "black"), ("robot", "grey")):
        Image.new("RGB", (40, 32), color).save(tmp_path / "ink" / f"{name}.png")
        (tmp_path / "ink" / f"{name}.txt").write_text(f"a {name}, ink style")
    (tmp_path / "ink" / "CREDITS.md").write_text("# Credits\n\nDrawn by Ada, CC0.\n")
    preset = tmp_path / "preset.toml"
    preset.write_text(PRESET.format(base=toy_base.as_posix(), root=tmp_path.as_posix()))

    def call(*flags: str, **settings: Any) -> int:
        overrides = [f"{key}={value}" for key, value in settings.items()]
        return main([str(preset), *flags, *(["--set", *overrides] if overrides else [])])

    return call


def events(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]


def files(folder: Path) -> dict[str, bytes]:
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def test_run_yields_an_adapter_that_changes_pictures(
    train: Train, tmp_path: Path, toy_pipe: StableDiffusionXLPipeline
) -> None:
    assert train(sample_every=2) == 0
    folder = tmp_path / "adapters" / "ink"
    assert sorted(files(folder)) == ["adapter.safetensors", "card.md", "thumbnail.png"]
    adapter = Adapter.load(folder / "adapter.safetensors")
    assert adapter.info.name == "ink"
    assert adapter.info.trigger_words == ("ink style",)
    assert adapter.info.base_model == "toy-xl"
    assert adapter.info.training["steps"] == "4"
    assert {delta.values.dtype for delta in adapter.deltas.values()} == {torch.float16}
    switcher = AdapterSwitcher(toy_pipe)
    switcher.add("ink", adapter)

    def draw() -> Image.Image:
        generator = torch.Generator().manual_seed(1000)
        return toy_pipe("a castle, ink style", num_inference_steps=2, generator=generator).images[0]

    before = draw()
    with switcher.using({"ink": 1.0}):
        assert draw().tobytes() != before.tobytes()
    assert draw().tobytes() == before.tobytes()

    card = (folder / "card.md").read_text()
    assert all(part in card for part in ("`ink style`", "Drawn by Ada", "AdapterSwitcher", "0.2"))
    assert "## Data\nDrawn by Ada, CC0.\n" in card
    assert "| prior_images | 2 |" in card
    assert str(tmp_path) not in card
    stated = container.read(folder / "adapter.safetensors").metadata
    kind, _, text = stated["modelspec.thumbnail"].partition(",")
    assert kind == "data:image/jpeg;base64"
    for source in (folder / "thumbnail.png", io.BytesIO(base64.b64decode(text))):
        with Image.open(source) as thumbnail:
            assert thumbnail.size == (32, 32)

    run = tmp_path / "runs" / "ink"
    kinds = [event["event"] for event in events(run)]
    assert kinds[0] == "started"
    assert kinds[-1] == "finished"
    assert [event["step"] for event in events(run) if event["event"] == "step"] == [1, 2, 3, 4]
    assert "warning" not in kinds
    assert json.loads((run / "config.json").read_text())["density"] == 0.2
    samples = sorted(path.name for path in (run / "samples").iterdir())
    assert samples == ["step-000002-1000.png", "step-000004-1000.png"]
    with Image.open(run / "samples" / samples[0]) as sample:
        assert json.loads(sample.text["parameters"])["prompt"] == "a castle, ink style"
    checkpoints = [path.name for path in (run / "checkpoints").iterdir()]
    assert sorted(checkpoints) == ["step-000002", "step-000004"]


def test_lora_run_gets_its_own_folder_and_fits_plain_diffusers(
    train: Train, tmp_path: Path, toy_pipe: StableDiffusionXLPipeline
) -> None:
    assert train(method="lora", run=tmp_path / "lora-run") == 0
    file = tmp_path / "adapters" / "ink-lora" / "adapter.safetensors"
    assert Adapter.load(file).info.method == "lora"
    stored = container.read(file)
    assert {name.partition("_down_")[0] for name in stored.tensors} >= {"lora_unet"}
    kinds = {name.partition(".")[2] for name in stored.tensors}
    assert kinds == {"lora_down.weight", "lora_up.weight", "alpha"}
    assert stored.metadata["ss_base_model_version"].startswith("sdxl_")
    assert stored.metadata["ss_output_name"] == "ink-lora"
    toy_pipe.load_lora_weights(file)
    assert toy_pipe.get_list_adapters()
    assert "load_lora_weights" in (file.parent / "card.md").read_text()


@pytest.mark.parametrize("method", ["shira", "lora"])
def test_stopped_and_resumed_run_gives_the_same_adapter(
    train: Train, tmp_path: Path, method: str
) -> None:
    name = "ink" if method == "shira" else "ink-lora"
    assert train(method=method) == 0
    whole = (tmp_path / "adapters" / name / "adapter.safetensors").read_bytes()
    second = {"run": tmp_path / "again", "adapters_dir": tmp_path / "other", "method": method}
    assert train("--stop-after", "1", **second) == 0
    assert not (tmp_path / "other").exists()
    assert train("--resume", "--stop-after", "2", **second) == 0
    assert train("--resume", **second) == 0
    assert (tmp_path / "other" / name / "adapter.safetensors").read_bytes() == whole
    kinds = [event["event"] for event in events(tmp_path / "again")]
    assert (kinds.count("resumed"), kinds.count("stopped")) == (2, 2)
    losses = [
        [event["loss"] for event in events(run) if event["event"] == "step"]
        for run in (tmp_path / "again", tmp_path / "runs" / "ink")
    ]
    assert losses[0] == losses[1]


@pytest.mark.parametrize(
    ("method", "precision"), [*((method, "bf16") for method in METHODS), ("shira", "fp16")]
)
def test_half_precision_base_trains_fp32_values(
    train: Train, tmp_path: Path, method: str, precision: str
) -> None:
    changes = {"precision": precision, "method": method, "rank": 4, "sample_every": 1}
    assert train("--stop-after", "2", **changes) == 0
    run = tmp_path / "runs" / "ink"
    assert "warning" not in [event["event"] for event in events(run)]
    file = run / "checkpoints" / "step-000002" / "state.pt"
    state = torch.load(file, weights_only=True)
    assert bool(state["scaler"]) == (precision == "fp16")
    stored = state["method"]["unet"]
    values = {
        "shira": lambda: [stored["tuner"]["values"]],
        "shira-dora": lambda: stored["values"],
    }.get(method, stored.values)()
    assert {value.dtype for value in values} == {torch.float32}
    assert train("--resume", **changes) == 0
    name = "ink" if method == "shira" else f"ink-{method}"
    folder = tmp_path / "adapters" / name
    assert sorted(files(folder)) == ["adapter.safetensors", "card.md", "thumbnail.png"]
    assert ("load_lora_weights" in (folder / "card.md").read_text()) == (method not in SPARSE)


def test_gradient_checkpointing_changes_no_result(train: Train, tmp_path: Path) -> None:
    found = []
    settings = {"mask": "snip", "calibration_batches": 2, "accumulation": 2}
    for checkpointing in ("false", "true"):
        place = tmp_path / checkpointing
        settings |= {"run": place, "adapters_dir": place, "gradient_checkpointing": checkpointing}
        assert train(**settings) == 0
        found.append(Adapter.load(place / "ink" / "adapter.safetensors"))
    for name, delta in found[0].deltas.items():
        assert torch.equal(delta.indices, found[1].deltas[name].indices)
        torch.testing.assert_close(delta.values, found[1].deltas[name].values)


def test_compiled_blocks_train_the_same(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The real backend takes minutes on a CPU; what differs between them is not ours.
    compile_blocks = partialmethod(
        UNet2DConditionModel.compile_repeated_blocks, backend="aot_eager"
    )
    changes = {"prior_weight": 0, "gradient_checkpointing": "true", "steps": 2, "sample_steps": 1}
    assert train(**changes) == 0
    monkeypatch.setattr(UNet2DConditionModel, "compile_repeated_blocks", compile_blocks)
    other = {"run": tmp_path / "compiled", "adapters_dir": tmp_path / "compiled-adapters"}
    assert train(compile="true", **changes, **other) == 0
    torch.compiler.reset()
    one, two = (
        Adapter.load(tmp_path / name / "ink" / "adapter.safetensors")
        for name in ("adapters", "compiled-adapters")
    )
    for name, delta in one.deltas.items():
        torch.testing.assert_close(delta.values, two.deltas[name].values, rtol=0, atol=1e-3)


@pytest.mark.slow
def test_two_processes_train_the_same_adapter_as_one(train: Train, tmp_path: Path) -> None:
    assert train() == 0
    launch = "accelerate.commands.launch --cpu --num_processes 2 --num_machines 1"
    launch += " --mixed_precision no --dynamo_backend no -m training"
    others = [f"run={tmp_path / 'two'}", f"adapters_dir={tmp_path / 'two-adapters'}"]
    subprocess.run(
        [sys.executable, "-m", *launch.split(), tmp_path / "preset.toml", "--set", *others],
        check=True,
        timeout=240,
    )
    one, two = (
        Adapter.load(folder / "ink" / "adapter.safetensors")
        for folder in (tmp_path / "adapters", tmp_path / "two-adapters")
    )
    for name, delta in one.deltas.items():
        assert torch.equal(delta.indices, two.deltas[name].indices)
        torch.testing.assert_close(delta.values, two.deltas[name].values, rtol=0, atol=1e-4)


def test_nothing_is_overwritten_unless_asked(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("--stop-after", "2") == 0
    kept = files(tmp_path)
    assert train() == 2
    assert "has a checkpoint of step 2" in capsys.readouterr().err
    adapter = tmp_path / "adapters" / "ink"
    adapter.mkdir(parents=True)
    (adapter / "precious").touch()
    assert train(run=tmp_path / "other") == 2
    assert "already an adapter" in capsys.readouterr().err
    assert train("--resume") == 2
    assert files(tmp_path) == kept | {"adapters/ink/precious": b""}
    assert train(overwrite="true") == 0
    assert sorted(files(adapter)) == ["adapter.safetensors", "card.md", "thumbnail.png"]
    assert [event["event"] for event in events(tmp_path / "runs" / "ink")].count("started") == 1
    assert [path.name for path in adapter.parent.iterdir()] == ["ink"]
    assert train("--resume") == 0, "a run may write its own adapter again"


def test_resume_says_what_differs(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("--resume") == 2
    assert "no run" in capsys.readouterr().err
    assert train("--stop-after", "1") == 0
    assert train("--resume", lr=0.5, seed=3) == 2
    message = capsys.readouterr().err
    assert "lr was 0.01, now 0.5" in message
    assert "seed was 0, now 3" in message
    (tmp_path / "ink" / "robot.txt").write_text("another robot, ink style")
    assert train("--resume") == 2
    assert "has changed since this run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"steps": 0, "maks": "rand"}, "did you mean mask"),
        ({"data": "/nowhere"}, "does not exist"),
        ({"base": "/nowhere"}, "nowhere"),
        ({"targets": "atention"}, "attention"),
        ({"resolution": 30}, "multiple of 8"),
        ({"device": "abacus"}, "abacus"),
    ],
)
def test_refused_runs_write_nothing(
    train: Train,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    settings: dict[str, object],
    expected: str,
) -> None:
    before = files(tmp_path)
    assert train(**settings) == 2
    captured = capsys.readouterr()
    assert expected in captured.err
    assert "Traceback" not in captured.err
    assert files(tmp_path) == before


def test_failing_samples_do_not_lose_the_run(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(Sampler, "draw", fail)
    assert train(sample_every=2, prior_weight=0) == 0
    assert sorted(files(tmp_path / "adapters" / "ink")) == ["adapter.safetensors", "card.md"]
    assert "prior_" not in (tmp_path / "adapters" / "ink" / "card.md").read_text()
    warnings = [e["message"] for e in events(tmp_path / "runs" / "ink") if e["event"] == "warning"]
    assert warnings == [f"samples of step {step} are missing: no room" for step in (2, 4)]


def test_running_out_of_memory_names_the_settings_to_change(
    train: Train,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: Any) -> None:
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(Loop, "_accumulate", fail)
    assert train(resolution=64) == 2
    message = capsys.readouterr().err.strip()
    pattern = (
        r"The device ran out of memory \(a step needs about (\d+) MiB\)\. Set batch=1 "
        r"accumulation=2 \(about (\d+) MiB\), or gradient_checkpointing=true \(about (\d+) MiB\), "
        r"or a lower resolution\."
    )
    match = re.fullmatch(pattern, message)
    assert match is not None, message
    now, *less = map(int, match.groups())
    assert all(0 < one <= now for one in less)
    assert events(tmp_path / "runs" / "ink")[-1]["message"] == message


def test_an_upload_that_fails_is_a_warning(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert train(hub_repo="ada/ink", steps=1) == 0
    assert (tmp_path / "adapters" / "ink" / "adapter.safetensors").is_file()
    (warning,) = (e for e in events(tmp_path / "runs" / "ink") if e["event"] == "warning")
    assert "the hub cannot be reached" in warning["message"]
    assert f"shira push {tmp_path / 'adapters' / 'ink'} ada/ink" in warning["message"]


def test_failing_export_leaves_no_half_adapter_and_can_be_resumed(
    train: Train,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: Any) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as broken:
        broken.setattr(Destination, "_take_place", fail)
        assert train() == 2
    assert f"{tmp_path / 'runs' / 'ink'}: disk full" in capsys.readouterr().err
    assert events(tmp_path / "runs" / "ink")[-1] | {"time": ""} == {
        "time": "",
        "event": "failed",
        "message": "disk full",
    }
    assert not list((tmp_path / "adapters").iterdir())
    assert train("--resume") == 0
    assert (tmp_path / "adapters" / "ink" / "adapter.safetensors").is_file()


def test_failing_replacement_puts_the_former_adapter_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, partial = tmp_path / "ink", tmp_path / ".ink.partial"
    for place in (folder, partial):
        place.mkdir()
        (place / "card.md").write_text(place.name)
    rename = Path.rename

    def fail(self: Path, target: Path) -> Path:
        if self == partial:
            raise OSError("disk full")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OSError, match="disk full"):
        Destination(folder, replace=True)._take_place(partial)
    assert files(tmp_path) == {"ink/card.md": b"ink", ".ink.partial/card.md": b".ink.partial"}


def test_resumed_run_does_not_replace_an_adapter_elsewhere(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train() == 0
    stranger = tmp_path / "other" / "ink"
    stranger.mkdir(parents=True)
    (stranger / "precious").touch()
    assert train("--resume", adapters_dir=tmp_path / "other") == 2
    assert "already an adapter" in capsys.readouterr().err
    assert files(stranger) == {"precious": b""}


@pytest.mark.parametrize("overwrite", ["true", "false"])
@pytest.mark.parametrize("config", [None, '{"architectures": []}', "no json"])
def test_files_that_no_run_wrote_are_kept(
    train: Train,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    overwrite: str,
    config: str | None,
) -> None:
    folder = tmp_path / "holiday"
    (folder / "samples").mkdir(parents=True)
    (folder / "samples" / "precious.png").touch()
    if config is not None:
        (folder / "config.json").write_text(config)
    before = files(tmp_path)
    assert train(run=folder, overwrite=overwrite) == 2
    assert "Choose another run folder with run=" in capsys.readouterr().err
    assert files(tmp_path) == before


def test_run_folder_that_cannot_be_written_is_named(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert train(run=tmp_path / "file" / "ink") == 2
    assert capsys.readouterr().err.startswith(f"{tmp_path / 'file' / 'ink'}: Not a directory.")


def test_interrupt_finishes_the_step_saves_and_says_how_to_go_on(
    train: Train,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    interrupt_after(1, monkeypatch)
    before = signal.getsignal(signal.SIGINT)
    assert train() == 130
    assert "--resume" in capsys.readouterr().out
    run = tmp_path / "runs" / "ink"
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-000001"]
    assert signal.getsignal(signal.SIGINT) is before
    monkeypatch.undo()
    assert train("--resume") == 0


def test_second_interrupt_stops_at_once(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt_after(3, monkeypatch, times=2)
    assert train() == 130
    run = tmp_path / "runs" / "ink"
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-000002"]
    assert not (tmp_path / "adapters").exists()


def interrupt_after(step: int, monkeypatch: pytest.MonkeyPatch, times: int = 1) -> None:
    """Send Ctrl-C while step number `step` is being logged."""
    log = Session._log

    def interrupted(self: Any, result: Any) -> None:
        log(self, result)
        if result.step == step:
            for _ in range(times):
                signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Session, "_log", interrupted)
