"""Where a run of the recipe reads and writes, how large its model is, how often it saves."""

import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from emoji_xl.architecture import FULL, TOY, Size
from emoji_xl.clock import Clock
from emoji_xl.curve import draw_curve
from emoji_xl.errors import RunError
from emoji_xl.updater import Module, Updater, seconds_of

log = logging.getLogger(__name__)

LOG_EVERY = 50


@dataclass(frozen=True)
class Recipe:
    """One stage's place, time and scale; `minutes` counts what a resumed run has behind it."""

    pack: Path
    run: Path
    minutes: float
    batch: int
    size: Size = FULL
    save_minutes: float = 2.0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    compiled: bool = False
    resumes: bool = False

    def state_file(self, stage: str) -> Path:
        """Where a stage keeps what it needs to go on: weights, average, optimizer."""
        return self.run / f"{stage}.safetensors"

    def clock(self, stage: str) -> Clock:
        """Start the clock of a stage, at zero or where the stopped run was.

        Raises `RunError` when there is nothing to resume or its time is over.
        """
        self.run.mkdir(parents=True, exist_ok=True)
        if not self.resumes:
            return Clock(self.minutes)
        file = self.state_file(stage)
        if not file.is_file():
            raise RunError(
                f"{self.run} holds no {file.name} to resume; start the stage with --run {self.run}."
            )
        seconds = seconds_of(file)
        if seconds >= 60 * self.minutes:
            raise RunError(
                f"The run in {self.run} has trained for {seconds / 60:.1f} minutes; "
                f"give it more than that: --minutes {seconds / 60 + 10:.0f}."
            )
        return Clock(self.minutes, before=seconds)

    def record(self, **event: object) -> None:
        """Append one event to the run's log."""
        line = json.dumps({"time": round(time.time(), 1), **event})
        with (self.run / "events.jsonl").open("a") as file:
            file.write(line + "\n")
        log.info(line)

    def follow(
        self,
        stage: str,
        updater: Updater[Module],
        losses: Iterator[Tensor],
        publish: Callable[[Module], object] | None = None,
    ) -> Module:
        """Run a stage to its end, from where it stopped if it resumes; return the averaged module.

        `losses` trains `updater` as it is iterated, and may not have begun.
        Logs the loss, and every `save_minutes` draws its curve, saves the state and publishes the
        average.
        """
        if self.resumes:
            updater.restore(self.state_file(stage))
        saved = updater.clock.seconds
        for loss in losses:
            if updater.step % LOG_EVERY == 1:
                seconds = round(updater.clock.seconds, 1)
                self.record(stage=stage, step=updater.step, loss=float(loss), s=seconds)
            if updater.clock.seconds - saved > 60 * self.save_minutes:
                self._keep(stage, updater)
                if publish:
                    publish(updater.average)
                saved = updater.clock.seconds
        self._keep(stage, updater)
        return updater.average

    def _keep(self, stage: str, updater: Updater[Module]) -> None:
        updater.save(self.state_file(stage))
        draw_curve(self.run / "events.jsonl", stage, self.run / f"{stage}-loss.png")


def size_named(name: str) -> Size:
    """Size of the model by its name: full or toy."""
    return {"full": FULL, "toy": TOY}[name]


def replace_folder(folder: Path, write: Callable[[Path], object]) -> None:
    """Write a folder beside its old version, then swap, so that a whole one is always there."""
    fresh, old = folder.with_name(folder.name + ".new"), folder.with_name(folder.name + ".old")
    shutil.rmtree(fresh, ignore_errors=True)
    write(fresh)
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    fresh.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
