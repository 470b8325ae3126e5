"""Trackers hear every step and the settings, are closed whatever happens, and are asked for."""

import dataclasses
import importlib.util
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from training_toys import settings

from training import trackers
from training.config import TRACKERS
from training.errors import ConfigError
from training.loop import StepResult
from training.settings import load_config
from training.trackers import tracking


@dataclasses.dataclass
class Recorder:
    """Stands in for one of accelerate's trackers and writes down what it is told."""

    kind: str
    heard: list[tuple[str, Any]]

    def __call__(self, *arguments: Any, **keywords: Any) -> "Recorder":
        self.heard.append((self.kind, (*arguments, *keywords.values())))
        return self

    def start(self) -> None:
        self.heard.append(("start", self.kind))

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.heard.append(("settings", values))

    def log(self, values: dict[str, float], step: int) -> None:
        self.heard.append(("step", (step, values)))

    def finish(self) -> None:
        self.heard.append(("finish", self.kind))


def refuse(text: str) -> None:
    raise AssertionError(text)


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    notes: list[tuple[str, Any]] = []
    monkeypatch.setattr(trackers, "TensorBoardTracker", Recorder("tensorboard", notes))
    monkeypatch.setattr(trackers, "WandBTracker", Recorder("wandb", notes))
    return notes


def test_a_tracker_hears_settings_and_steps(heard: list[tuple[str, Any]], tmp_path: Path) -> None:
    config = settings(name="ink", trigger_words=("ink style",))
    with tracking(["tensorboard"], config, tmp_path / "curves", refuse) as track:
        track(StepResult(7, 0.5, 1e-3, 0.25))
    assert heard[0] == ("tensorboard", ("curves", tmp_path))
    assert heard[1] == ("start", "tensorboard")
    _, values = heard[2]
    assert values.keys() == {field.name for field in dataclasses.fields(config)}
    assert (values["name"], values["trigger_words"]) == ("ink", '["ink style"]')
    assert {type(value) for value in values.values()} <= {str, int, float, bool}
    assert heard[3] == ("step", (7, {"loss": 0.5, "lr": 1e-3, "seconds": 0.25}))
    assert heard[4:] == [("finish", "tensorboard")]


def test_all_trackers_are_closed_when_the_training_fails(
    heard: list[tuple[str, Any]], tmp_path: Path
) -> None:
    with (
        pytest.raises(RuntimeError, match="out of memory"),
        tracking(list(TRACKERS), settings(), tmp_path / "curves", refuse),
    ):
        raise RuntimeError("out of memory")
    assert [note for note in heard if note[0] == "finish"] == [
        ("finish", "tensorboard"),
        ("finish", "wandb"),
    ]


def test_trackers_that_are_unknown_or_missing_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    path = tmp_path / "preset.toml"
    path.write_text('data = "ink"\ntrackers = ["wandb", "tensorbord"]\n')
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert "'wandb' needs a package that is not here: pip install wandb" in str(caught.value)
    assert "did you mean tensorboard?" in str(caught.value)


def test_tensorboard_reads_the_curves(tmp_path: Path) -> None:
    folder = tmp_path / "tensorboard"
    with tracking(["tensorboard"], settings(name="ink"), folder, refuse) as track:
        for step in (1, 2, 3):
            track(StepResult(step, 1 / step, 1e-3, 0.25))
    events = EventAccumulator(str(folder))
    events.Reload()
    assert set(events.Tags()["scalars"]) == {"loss", "lr", "seconds"}
    points = [(point.step, point.value) for point in events.Scalars("loss")]
    assert points == [(1, 1.0), (2, 0.5), (3, pytest.approx(1 / 3))]


@pytest.mark.parametrize("method", ["start", "store_init_configuration", "log", "finish"])
def test_a_tracker_that_fails_is_a_warning_and_no_more(
    heard: list[tuple[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    def fail(self: Recorder, *_: Any, **__: Any) -> None:
        if self.kind == "wandb":
            raise ConnectionError("no such host")
        good(self, *_, **__)

    good = getattr(Recorder, method)
    monkeypatch.setattr(Recorder, method, fail)
    warnings: list[str] = []
    with tracking(["wandb", "tensorboard"], settings(), tmp_path, warnings.append) as track:
        for step in (1, 2):
            track(StepResult(step, 0.5, 1e-3, 0.25))
    assert warnings == ["wandb draws no curves any more: no such host"]
    steps = [note for kind, note in heard if kind == "step"]
    # Both hear of both steps, but of a failed one nothing comes.
    assert len(steps) == {"finish": 4}.get(method, 2)
