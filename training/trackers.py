"""Curves of a run in TensorBoard or W&B, through accelerate's trackers."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from accelerate.tracking import GeneralTracker, TensorBoardTracker, WandBTracker

from training.config import Config
from training.loop import StepResult
from training.written import to_json

WANDB_PROJECT = "shira-studio"

Track = Callable[[StepResult], None]
"""Draws the next point of a run's curves."""


@contextmanager
def tracking(names: Sequence[str], config: Config, folder: Path) -> Iterator[Track]:
    """Open the named trackers for the block.

    TensorBoard's files go to `folder`. W&B goes where its own settings say
    (`WANDB_MODE`, `WANDB_DIR`), in the project "shira-studio". Both are told the run's settings.
    """
    with ExitStack() as opened:
        trackers = []
        for name in names:
            tracker = _create(name, config, folder)
            tracker.start()
            opened.callback(tracker.finish)
            tracker.store_init_configuration(_flat(config))
            trackers.append(tracker)

        def track(result: StepResult) -> None:
            values = {"loss": result.loss, "lr": result.lr, "seconds": result.seconds}
            for tracker in trackers:
                tracker.log(values, step=result.step)

        yield track


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
