"""Workers: processes that share out devices, or this process alone."""

import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing.queues import Queue
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

from evaluation.bench import Bench

T = TypeVar("T")
Work = Callable[[Bench], Any]
"""What a worker does with its bench; it travels to it, so no lambda."""


class Crew(Protocol):
    """Something that does work, `size` pieces at a time."""

    size: int

    def submit(self, work: Work) -> Future[Any]:
        """Start a piece of work and return its result to come."""


class Alone:
    """This process, one piece of work after another: each is done when it is submitted."""

    size = 1

    def __init__(self, bench: Bench) -> None:
        self._bench = bench

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """There is nothing to end."""

    def submit(self, work: Work) -> Future[Any]:
        """Do the work now."""
        future: Future[Any] = Future()
        try:
            future.set_result(work(self._bench))
        except Exception as error:  # noqa: BLE001
            future.set_exception(error)
        return future


class Processes:
    """Processes with a bench each, devices in turn; a device that is named gets its share."""

    def __init__(
        self, count: int, devices: Sequence[str], work: Path, pictures: Path | None
    ) -> None:
        self.size = count
        context = multiprocessing.get_context("spawn")
        places: Queue[str] = context.Queue()
        for number in range(count):
            places.put(devices[number % len(devices)])
        # Workers keep to themselves: two threads each in several processes starve one another.
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        self._executor = ProcessPoolExecutor(
            count, mp_context=context, initializer=_take_place, initargs=(places, work, pictures)
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._executor.shutdown(wait=True, cancel_futures=True)

    def submit(self, work: Work) -> Future[Any]:
        """Give the work to the next free process."""
        return self._executor.submit(_at_the_bench, work)


_bench: list[Bench] = []


def _take_place(places: "Queue[str]", work: Path, pictures: Path | None) -> None:
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    _bench[:] = [Bench(work, places.get(), pictures)]


def _at_the_bench(work: Work) -> Any:
    return work(_bench[0])
