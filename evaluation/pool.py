"""Workers: processes that share out devices, or this process alone."""

import multiprocessing
import os
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import torch

from evaluation.bench import Bench
from evaluation.errors import EvaluationError

Work = Callable[[Bench], Any]
"""What a worker does with its bench; it travels to it, so no lambda."""

_THREADS = "OMP_NUM_THREADS"
_MOST_STARTS = 4


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
            group.end()

    def submit(self, work: Work) -> Future[Any]:
        """Give the work to a free process."""
        return max(self._groups, key=lambda group: group.free).submit(work)


class _Group:
    """The processes of one device, which are started anew when one of them dies."""

    def __init__(self, count: int, device: str, work: Path, pictures: Path | None) -> None:
        kind, _, index = device.partition(":")
        visible = _visible(index) if kind == "cuda" else None
        place = ("cuda:0" if kind == "cuda" else device, work, pictures)
        self._count = count
        self._environment = {_THREADS: "1"}
        if visible:
            self._environment["CUDA_VISIBLE_DEVICES"] = visible
        self._place = place
        self._starts = 0
        self.busy: set[Future[Any]] = set()
        self._executor = self._started()

    @property
    def free(self) -> int:
        """How many processes have nothing to do."""
        return self._count - len(self.busy)

    def submit(self, work: Work) -> Future[Any]:
        """Give the work to a free process.

        Raises `EvaluationError` when processes die again and again.
        """
        try:
            future = self._executor.submit(_at_the_bench, work)
        except BrokenExecutor as error:
            if self._starts >= _MOST_STARTS:
                raise EvaluationError(
                    "Workers die again and again, of memory that is used up or in a library. Try "
                    "fewer --workers; what is done stays done."
                ) from error
            self._executor = self._started()
            future = self._executor.submit(_at_the_bench, work)
        self.busy.add(future)
        future.add_done_callback(self.busy.discard)
        return future

    def end(self) -> None:
        """Wait for what is at work and end the processes."""
        self._executor.shutdown(wait=True, cancel_futures=True)

    def _started(self) -> ProcessPoolExecutor:
        """Start all processes at once, as copies of one that has imported everything."""
        self._starts += 1
        with _one_thread_each():
            executor = self._executor_of("forkserver")
            first, *_ = [executor.submit(_is_fit) for _ in range(self._count)]
            if first.exception() is None and first.result():
                return executor
            executor.shutdown()
            executor = self._executor_of("spawn")
            for _ in range(self._count):
                executor.submit(_is_fit)
        return executor

    def _executor_of(self, method: str) -> ProcessPoolExecutor:
        context = multiprocessing.get_context(method)
        context.set_forkserver_preload([Bench.__module__])
        return ProcessPoolExecutor(
            self._count,
            mp_context=context,
            initializer=_take_place,
            initargs=(self._environment, *self._place),
        )


def _visible(index: str) -> str:
    """Return the GPU of this index among those that are visible already."""
    known = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return known.split(",")[int(index)] if known and index else index or "0"


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Have processes that the block starts compute in one thread: several would starve others."""
    former = os.environ.get(_THREADS)
    os.environ[_THREADS] = "1"
    try:
        yield
    finally:
        if former is None:
            del os.environ[_THREADS]
        else:
            os.environ[_THREADS] = former


_bench: list[Bench] = []


def _take_place(
    environment: Mapping[str, str], device: str, work: Path, pictures: Path | None
) -> None:
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    # CUDA reads it when it is first used, which is after this.
    os.environ.update(environment)
    torch.set_num_threads(1)
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    _bench[:] = [Bench(work, device, pictures)]


def _at_the_bench(work: Work) -> Any:
    try:
        return work(_bench[0])
    except torch.AcceleratorError:
        # After such an error nothing more can be done with the GPU in this process.
        traceback.print_exc()
        os._exit(1)


def _is_fit() -> bool:
    """Start a process, and say whether it can use CUDA as far as it is a copy of another."""
    return not torch.cuda._is_in_bad_fork()
