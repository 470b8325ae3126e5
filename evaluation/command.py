"""`python -m evaluation PLAN.toml ...`: carry plans out, as far as the time allows."""

import argparse
import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console

from evaluation.bench import Bench
from evaluation.carry_out import WORK, carry_out
from evaluation.errors import EvaluationError
from evaluation.place import Place
from evaluation.plan_file import read_plan
from evaluation.pool import Alone, Processes
from evaluation.progress import Progress

UNFINISHED = 3
FAILED = 4
_SECONDS_BETWEEN_LINES = 10.0


def add_plan(parser: argparse.ArgumentParser) -> None:
    """Add what carrying out a plan takes."""
    parser.add_argument(
        "plans", nargs="+", help="TOML files or plans' names: quick, tune, headline ..."
    )
    parser.add_argument("--work", type=Path, default=WORK, help=f"adapters and caches; {WORK}")
    parser.add_argument(
        "--out", type=Path, help="records and pictures; the first plan's name in --work"
    )
    parser.add_argument("--chosen", type=Path, help="settings that a search has chosen")
    parser.add_argument(
        "--device",
        action="append",
        help="cpu, cuda:0 ...; several may be named; all GPUs there are",
    )
    parser.add_argument("--workers", type=int, default=1, help="processes in all; 1 is this one")
    parser.add_argument("--until", type=float, default=math.inf, metavar="SECONDS",
                        help="begin nothing that would end later than this")  # fmt: skip


def run_plan(options: argparse.Namespace) -> int:
    """Carry out the plans, one after another, and write the report.

    Returns 0, 3 when there was no time for something, or 4 when something failed and all else is
    done.
    """
    plans = [read_plan(plan, options.chosen) for plan in options.plans]
    if options.workers < 1:
        raise EvaluationError(f"--workers {options.workers}: at least one has to work.")
    place = Place(options.out or options.work / plans[0].name, options.work)
    deadline = time.monotonic() + options.until
    console = Console()
    reached = []
    with _crew(options.workers, options.device or devices_here(), place) as crew:
        for plan in plans:
            until = deadline - time.monotonic()
            report = _reporter(console, plan.name)
            progress = carry_out(plan, place, crew, until=until, report=report)
            for failure in progress.failures:
                console.print(f"failed: {failure}", style="yellow", markup=False, soft_wrap=True)
            console.print(_line(plan.name, progress), markup=False)
            reached.append(progress)
    if any(progress.left for progress in reached):
        return UNFINISHED
    if place.records.path.is_file():
        # Only reports need matplotlib, which other machines may lack.
        from evaluation.report import report_of

        page = report_of([place.folder], place.folder / "report")
        console.print(f"the report is in {page}", markup=False, soft_wrap=True)
    return 0 if all(progress.finished for progress in reached) else FAILED


def _crew(count: int, devices: list[str], place: Place) -> Alone | Processes:
    if count == 1:
        return Alone(Bench(place.work, devices[0], place.pictures))
    return Processes(count, devices, place.work, place.pictures)


def devices_here() -> list[str]:
    """Name every GPU, or the CPU where there is none."""
    return [f"cuda:{number}" for number in range(torch.cuda.device_count())] or ["cpu"]


def _reporter(console: Console, name: str) -> Callable[[Progress], None]:
    """Return what prints a line now and then."""
    began = time.monotonic()
    due = 0.0

    def report(progress: Progress) -> None:
        nonlocal due
        seconds = time.monotonic() - began
        if seconds >= due:
            due = seconds + _SECONDS_BETWEEN_LINES
            console.print(f"{seconds:6.0f} s  {_line(name, progress)}", markup=False)

    return report


def _line(name: str, progress: Progress) -> str:
    failed = f", {len(progress.failures)} failed" if progress.failures else ""
    return (
        f"{name}: {progress.trained} of {progress.trainings} adapters, "
        f"{progress.drawn} of {progress.drawings} drawings{failed}"
    )
