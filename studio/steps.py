"""What happens between two sampling steps: a stop, a switch of adapters, a word on the progress."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from PIL import Image
from torch import Tensor

from shira_diffusion.schedule import StepCallback
from studio.errors import StoppedError
from studio.preview import Preview

PREVIEW_SECONDS = 0.15
"""How long after one preview the next may come."""


@dataclass(frozen=True)
class Step:
    """Sampling step `number` of `total` is done, `seconds` after the first one began.

    `preview` is a rough look at what the picture will be, with some of the steps.
    """

    number: int
    total: int
    seconds: float
    preview: Image.Image | None = field(default=None, compare=False, repr=False)

    @property
    def seconds_left(self) -> float:
        """How long the other steps will take if they take as long."""
        return self.seconds / self.number * (self.total - self.number)


class Steps:
    """The steps of one picture; `switching` is what changing the mix between them took (s)."""

    def __init__(
        self,
        total: int,
        stop: threading.Event | None,
        report: Callable[[Step], None] | None,
        preview: Preview,
    ) -> None:
        self.switching = 0.0
        self._total = total
        self._stop = stop
        self._report = report
        self._preview = preview
        self._seen = time.perf_counter()

    def raise_if_stopped(self) -> None:
        """Raise `StoppedError` once the stop is asked for."""
        if self._stop is not None and self._stop.is_set():
            raise StoppedError("Stopped. The base model is back as it was.")

    def callback(
        self, switch: StepCallback, prediction: Callable[[Tensor], Tensor]
    ) -> StepCallback:
        """What the pipeline calls after each step.

        `switch` sets the next step's mix, `prediction` is that of `preview.watch_prediction`.
        """
        began = time.perf_counter()

        def after_step(
            pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]
        ) -> dict[str, Any]:
            self.raise_if_stopped()
            before = time.perf_counter()
            tensors = switch(pipe, index, timestep, tensors)
            self.switching += time.perf_counter() - before
            if self._report:
                look = self._look(index, prediction(tensors["latents"]))
                self._report(Step(index + 1, self._total, time.perf_counter() - began, look))
            return tensors

        return after_step

    def _look(self, index: int, latents: Tensor) -> Image.Image | None:
        now = time.perf_counter()
        if now - self._seen < PREVIEW_SECONDS or index + 1 == self._total:
            return None
        self._seen = now
        return self._preview.picture(latents)
