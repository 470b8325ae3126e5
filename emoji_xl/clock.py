"""Training bounded by wall-clock time: how far a run is, and what its learning rate is then."""

import math
import time
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Clock:
    """A stopwatch for a run of so many minutes, `before` seconds of which are already over."""

    minutes: float
    before: float = 0.0
    started: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return self.before + time.monotonic() - self.started

    @property
    def progress(self) -> float:
        """Share of the time that has passed, from 0 to 1."""
        return min(1.0, self.seconds / max(60 * self.minutes, 1e-9))


def learning_rate(peak: float, step: int, progress: float, *, warmup: int = 300) -> float:
    """Linear warm-up over steps, then a cosine over time down to 1 % of the peak."""
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    return peak * min(1.0, (step + 1) / warmup) * (0.01 + 0.99 * cosine)
