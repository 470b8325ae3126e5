"""How far a run is, from its event log alone."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

RECENT = 50
"""From how many of the last steps the time that is left is reckoned."""


@dataclass(frozen=True)
class Sample:
    """A picture that the run drew after `step` steps."""

    step: int
    prompt: str
    file: str


@dataclass(frozen=True)
class Progress:
    """The run up to the last line of its log.

    `stepping` says whether it has done a step since it began or went on last, `last` is the kind
    of the last event that began or ended it ("" before any); `losses` holds (step, loss); `pace` is
    seconds a step, samples included, None before there are two steps.
    """

    steps: int = 0
    stepping: bool = False
    last: str = ""
    message: str = ""
    adapter: str = ""
    trained: int = 0
    losses: tuple[tuple[int, float], ...] = ()
    pace: float | None = None
    step_seconds: float | None = None
    samples: tuple[Sample, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def step(self) -> int:
        """How many steps are done."""
        return self.losses[-1][0] if self.losses else 0

    @property
    def seconds_left(self) -> float | None:
        """Until the last step, if it goes on as it went lately."""
        return None if self.pace is None else self.pace * max(self.steps - self.step, 0)


class Logs:
    """Event logs, each read again only when it has changed; any thread may read."""

    def __init__(self) -> None:
        self._known: dict[Path, tuple[tuple[int, int], Progress]] = {}

    def read(self, log: Path) -> Progress:
        """How far its run is; a log that is not there yet is a run that has not begun."""
        try:
            stat = log.stat()
        except OSError:
            return Progress()
        stamp = stat.st_mtime_ns, stat.st_size
        known, progress = self._known.get(log, (None, Progress()))
        if known != stamp:
            progress = summary(_rows(log))
            self._known[log] = stamp, progress
        return progress

    def forget(self, log: Path) -> None:
        """Let go of what was read of a log."""
        self._known.pop(log, None)


def _rows(log: Path) -> Iterator[dict[str, Any]]:
    for line in log.read_bytes().splitlines():
        try:
            row = json.loads(line)
        except ValueError:  # torn by a process that died
            continue
        if isinstance(row, dict) and isinstance(row.get("event"), str):
            yield row


def summary(rows: Iterable[dict[str, Any]]) -> Progress:
    """Put the events together; what was done again after a resume counts as it came out last."""
    steps: dict[int, dict[str, Any]] = {}
    facts: dict[str, Any] = {}
    samples: dict[str, Sample] = {}
    warnings: dict[str, None] = {}
    for row in rows:
        match row["event"]:
            case "step":
                if row["step"] in steps:  # a resumed run does those after its checkpoint again
                    steps = {number: one for number, one in steps.items() if number < row["step"]}
                steps[row["step"]] = row
                facts["stepping"] = True
            case "sample":
                samples[row["file"]] = Sample(row["step"], row["prompt"], row["file"])
            case "warning":
                warnings[row["message"]] = None
            case "started" | "resumed":
                facts |= {"last": row["event"], "message": "", "stepping": False}
                facts["steps"] = row["steps"]
            case "method":
                facts["trained"] = row["trained"]
            case "stopped" | "failed" | "finished":
                facts |= {"last": row["event"], "message": row.get("message", "")}
                facts["stepping"] = False
                facts["adapter"] = Path(row.get("adapter", "")).name
    last = list(steps.values())[-RECENT:]
    return Progress(
        **facts,
        losses=tuple((number, row["loss"]) for number, row in steps.items()),
        pace=_pace(last),
        step_seconds=median(row["seconds"] for row in last) if last else None,
        samples=tuple(samples.values()),
        warnings=tuple(warnings),
    )


def _pace(rows: list[dict[str, Any]]) -> float | None:
    """Seconds from step to step; pauses between a stop and a resume do not count."""
    times = [datetime.fromisoformat(row["time"]).timestamp() for row in rows]
    gaps = sorted(later - earlier for earlier, later in pairwise(times) if later >= earlier)
    if not gaps:
        return None
    typical = max(gaps[len(gaps) // 2], 0.05)
    kept = [gap for gap in gaps if gap < 60 * typical]
    return sum(kept) / len(kept) if kept else None
