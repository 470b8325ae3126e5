"""Curves of a run in TensorBoard or W&B, through accelerate's trackers."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from accelerate.tracking import GeneralTracker, TensorBoardTracker, WandBTracker

from training.config import Config
from training.loop import StepResult
from training.written import to_json

WANDB_PROJECT = "shira-studio"

Track = Callable[[StepResult], None]
"""Draws the next point of a run's curves."""


@contextmanager
def tracking(
    names: Sequence[str], config: Config, folder: Path, warn: Callable[[str], None]
) -> Iterator[Track]:
    """Open the named trackers for the block.

    TensorBoard's files go to `folder`. W&B goes where its own settings say
    (`WANDB_MODE`, `WANDB_DIR`), in the project "shira-studio". Both are told the run's settings.
    One that fails is left out from then on, and `warn` hears of it: no curve is worth a run.
    """
    guarded = [_Guarded(name, warn) for name in names]
    for tracker in guarded:
        tracker.open(config, folder)

    def track(result: StepResult) -> None:
        values = {"loss": result.loss, "lr": result.lr, "seconds": result.seconds}
        for tracker in guarded:
            tracker.log(values, result.step)

    try:
        yield track
    finally:
        for tracker in guarded:
            tracker.close()


class _Guarded:
    """A tracker that is closed and forgotten when anything goes wrong with it."""

    def __init__(self, name: str, warn: Callable[[str], None]) -> None:
        self._name = name
        self._warn = warn
        self._tracker: GeneralTracker | None = None

    def open(self, config: Config, folder: Path) -> None:
        with self._guard():
            self._tracker = _create(self._name, config, folder)
            self._tracker.start()
            self._tracker.store_init_configuration(_flat(config))

    def log(self, values: dict[str, float], step: int) -> None:
        if self._tracker:
            with self._guard():
                self._tracker.log(values, step=step)

    def close(self) -> None:
        if self._tracker:
            with self._guard():
                self._tracker.finish()

    @contextmanager
    def _guard(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # noqa: BLE001
            self._tracker = None
            self._warn(f"{self._name} draws no curves any more: {error}")


def _create(name: str, config: Config, folder: Path) -> GeneralTracker:
    if name == "tensorboard":
        return TensorBoardTracker(folder.name, folder.parent)
    assert name == "wandb", name
    return WandBTracker(WANDB_PROJECT, name=config.name)


def _flat(config: Config) -> dict[str, str | int | float | bool]:
    """Return the settings as values that the trackers can show."""
    return {
        key: value if isinstance(value, str | int | float) else json.dumps(value)
        for key, value in json.loads(to_json(config)).items()
    }
