"""Workers: processes that share out devices, or this process alone."""

import multiprocessing
import os
import traceback
from collections import Counter
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
# In a row, so that some bad pieces of work one after the other, three times each, are no end.
_MOST_DEATHS = 10


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
        self._workers = [
            _Worker(devices[number % len(devices)], work, pictures) for number in range(count)
        ]
        _begin(self._workers)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for worker in self._workers:
            worker.end()

    def submit(self, work: Work) -> Future[Any]:
        """Give the work to a free process, where most are free."""
        free = [worker for worker in self._workers if worker.free]
        by_device = Counter(worker.device for worker in free)
        return max(free, key=lambda worker: by_device[worker.device]).submit(work)


class _Worker:
    """One process on a device, which is started anew when it dies.

    Each has an executor of its own: one of several processes fails the work of all when one dies.
    """

    def __init__(self, device: str, work: Path, pictures: Path | None) -> None:
        kind, _, index = device.partition(":")
        visible = _visible(index) if kind == "cuda" else None
        self.device = device
        self._place = ("cuda:0" if kind == "cuda" else device, work, pictures)
        self._environment = {_THREADS: "1"}
        if visible:
            self._environment["CUDA_VISIBLE_DEVICES"] = visible
        self._executor: ProcessPoolExecutor | None = None
        self._last: Future[Any] | None = None
        self._deaths = 0  # in a row

    @property
    def free(self) -> bool:
        """Whether it has nothing to do."""
        return self._last is None or self._last.done()

    def submit(self, work: Work) -> Future[Any]:
        """Give it the work.

        Raises `EvaluationError` when it dies again and again.
        """
        if self._last is not None and not isinstance(self._last.exception(), BrokenExecutor):
            self._deaths = 0
        assert self._executor is not None
        try:
            self._last = self._executor.submit(_at_the_bench, work)
        except BrokenExecutor as error:
            self._deaths += 1
            if self._deaths == _MOST_DEATHS:
                raise EvaluationError(
                    "A worker dies again and again, of memory that is used up or in a library. Try "
                    "fewer --workers; what is done stays done."
                ) from error
            _begin([self])
            self._last = self._executor.submit(_at_the_bench, work)
        return self._last

    def begin(self, method: str) -> Future[bool]:
        """Start the process in place of a former one; return whether it is fit, to come."""
        self.end()
        context = multiprocessing.get_context(method)
        context.set_forkserver_preload([Bench.__module__])
        self._executor = ProcessPoolExecutor(
            1,
            mp_context=context,
            initializer=_take_place,
            initargs=(self._environment, *self._place),
        )
        return self._executor.submit(_is_fit)

    def end(self) -> None:
        """Wait for what is at work and end the process."""
        if self._executor is not None:
            self._executor.shutdown(wait=True, cancel_futures=True)


def _begin(workers: Sequence[_Worker]) -> None:
    """Start all at once, as copies of one process that has imported everything."""
    with _one_thread_each():
        first, *_ = [worker.begin("forkserver") for worker in workers]
        if first.exception() is not None or not first.result():
            for worker in workers:
                worker.begin("spawn")


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
