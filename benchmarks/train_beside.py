"""Trainings of the embedded base beside one another on one device, launched and as CUDA graphs.

    python -m benchmarks.train_beside [--data FOLDER] [--device cpu|cuda] [--processes 1 4 12]
        [--methods shira lora] [--steps 80] [--base FOLDER] [--json FILE]

Each row is so many processes of `python -m training emoji-style` in fp32 at once, as an evaluation
has its workers; its milliseconds are those of one step in one process, without the first third of
the steps, in which graphs are captured. `steps a second` is what all processes do together.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from benchmarks.measure import Row
from benchmarks.report import Report, finish, machine, parser
from training.events import EventLog

_COMMON = ("sample_steps=0", "checkpoint_every=0", "precision=fp32", "schedule=constant")
_WAYS = {"launched": "false", "one CUDA graph": "true"}


@dataclass(frozen=True)
class BesideRow(Row):
    """What a step takes, and how many of them all processes do."""

    steps_a_second: float


@dataclass(frozen=True)
class Scene:
    """What all rows share: the images, the device, how many steps, where to write."""

    base: str
    data: Path
    device: str
    steps: int
    scratch: Path

    def row(self, name: str, settings: Mapping[str, str], count: int) -> BesideRow:
        """Train in `count` processes at once and take the times from their event logs."""
        runs = [self.scratch / f"{name}-{number}".replace(" ", "-") for number in range(count)]
        started = [
            subprocess.Popen(self._command(run, settings), env=_ALONE, stdout=sys.stderr)
            for run in runs
        ]
        codes = [process.wait() for process in started]
        if any(codes):
            raise RuntimeError(f"a training of the row {name!r} ended with {max(codes)}")
        seconds = [taken for run in runs for taken in self._taken(run)]
        low, middle, high = (round(1000 * one, 4) for one in statistics.quantiles(seconds, n=4))
        together = round(1000 * count / middle, 1)
        return BesideRow(name, middle, low, high, len(seconds), together)

    def _command(self, run: Path, settings: Mapping[str, str]) -> list[str]:
        given = {
            "base": self.base,
            "data": self.data,
            "name": run.name,
            "run": run,
            "adapters_dir": self.scratch / "adapters",
            "cache_dir": self.scratch / "cache",
            "device": self.device,
            "steps": self.steps,
            **settings,
        }
        words = [*_COMMON, *(f"{key}={value}" for key, value in given.items())]
        return [sys.executable, "-m", "training", "emoji-style", "--set", *words]

    def _taken(self, run: Path) -> Iterator[float]:
        log = EventLog(run / "events.jsonl")
        for warning in log.find("warning"):
            print(f"{run.name}: {warning['message']}", file=sys.stderr)
        return (row["seconds"] for row in log.find("step") if row["step"] > self.steps // 3)


_ALONE = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, and write."""
    options = _parser().parse_args(arguments)
    ways = _WAYS if options.device.type == "cuda" else {"launched": "false"}
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        scene = Scene(options.base, options.data, str(options.device), options.steps, Path(scratch))
        for method, (way, graphs), count in product(
            options.methods, ways.items(), options.processes
        ):
            settings = {"method": method, "cuda_graphs": graphs}
            rows.append(scene.row(f"{method}, {way}, {count} at once", settings, count))
    ratios = {f"{row.name}, steps a second": row.steps_a_second for row in rows}
    finish(Report(machine(options.device), rows, ratios), options.json)


def _parser() -> argparse.ArgumentParser:
    made = parser(__doc__)
    made.add_argument("--base", default="models/emoji-xl")
    made.add_argument("--data", type=Path, default=Path("examples/high-contrast"))
    made.add_argument("--processes", type=int, nargs="+", default=[1, 4, 12])
    made.add_argument("--methods", nargs="+", default=["shira", "lora"])
    made.add_argument("--steps", type=int, default=80)
    return made


if __name__ == "__main__":
    main()
