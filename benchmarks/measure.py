"""How long something takes: rounds in turn, medians, and the spread between quartiles."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch


def _nothing() -> None:
    """There is nothing to prepare."""


@dataclass(frozen=True)
class Case:
    """What is timed, `run`, after `prepare`, which is not."""

    name: str
    run: Callable[[], object]
    prepare: Callable[[], object] = _nothing


@dataclass(frozen=True)
class Row:
    """Milliseconds of one case: the median of `rounds`, and the quartiles around it."""

    name: str
    median_ms: float
    low_ms: float
    high_ms: float
    rounds: int


def measure(
    cases: Sequence[Case], device: torch.device, *, rounds: int, warm_up: int = 2
) -> list[Row]:
    """Time each case once a round, so that a machine that slows down does so for all of them."""
    seconds: dict[str, list[float]] = {case.name: [] for case in cases}
    for number in range(warm_up + rounds):
        for case in cases:
            case.prepare()
            _wait(device)
            began = time.perf_counter()
            case.run()
            _wait(device)
            if number >= warm_up:
                seconds[case.name].append(time.perf_counter() - began)
    return [_row(name, taken) for name, taken in seconds.items()]


def _row(name: str, seconds: list[float]) -> Row:
    low, middle, high = (1000 * one for one in statistics.quantiles(seconds, n=4))
    return Row(name, round(middle, 4), round(low, 4), round(high, 4), len(seconds))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
