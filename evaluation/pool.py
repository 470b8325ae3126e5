"""Workers: processes that share out devices, or this process alone."""

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
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
    """Processes with a bench each, devices in turn; a GPU's processes see no other."""

    def __init__(
        self, count: int, devices: Sequence[str], work: Path, pictures: Path | None
    ) -> None:
        self.size = count
        shares = [devices[number % len(devices)] for number in range(count)]
        self._groups = [
            _Group(shares.count(device), device, work, pictures) for device in dict.fromkeys(shares)
        ]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for group in self._groups:
            group.executor.shutdown(wait=True, cancel_futures=True)

    def submit(self, work: Work) -> Future[Any]:
        """Give the work to a free process."""
        group = max(self._groups, key=lambda group: group.free)
        future = group.executor.submit(_at_the_bench, work)
        group.busy.add(future)
        future.add_done_callback(group.busy.discard)
        return future


class _Group:
    """The processes of one device."""

    def __init__(self, count: int, device: str, work: Path, pictures: Path | None) -> None:
        self._count = count
        self.busy: set[Future[Any]] = set()
        kind, _, index = device.partition(":")
        with _environment(CUDA_VISIBLE_DEVICES=_visible(index) if kind == "cuda" else None):
            self.executor = ProcessPoolExecutor(
                count,
                mp_context=multiprocessing.get_context("spawn"),
                initializer=_take_place,
                initargs=("cuda:0" if kind == "cuda" else device, work, pictures),
            )
            # Processes start with the first pieces of work, so that is done here: they take the
            # environment along, and CUDA reads it once.
            for _ in range(count):
                self.executor.submit(_nothing)

    @property
    def free(self) -> int:
        """How many processes have nothing to do."""
        return self._count - len(self.busy)


def _visible(index: str) -> str:
    """Return the GPU of this index among those that are visible already."""
    known = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return known.split(",")[int(index)] if known and index else index or "0"


@contextmanager
def _environment(**values: str | None) -> Iterator[None]:
    """Set variables that are not None for the processes that the block starts."""
    # Workers keep to themselves: two threads each in several processes starve one another.
    new = {"OMP_NUM_THREADS": "1", **{key: value for key, value in values.items() if value}}
    former = {key: os.environ.get(key) for key in new}
    os.environ.update(new)
    try:
        yield
    finally:
        for key, value in former.items():
            if value is None:
                del os.environ[key]
            else:
                os.environ[key] = value


_bench: list[Bench] = []


def _take_place(device: str, work: Path, pictures: Path | None) -> None:
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    _bench[:] = [Bench(work, device, pictures)]


def _at_the_bench(work: Work) -> Any:
    return work(_bench[0])


def _nothing() -> None:
    """Start a process and do no more."""
