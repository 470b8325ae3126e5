"""Long work in a thread of its own, its reports as an iterator: what a progress bar needs."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Generic, TypeVar

P = TypeVar("P")
R = TypeVar("R")


@dataclass(frozen=True)
class Finished(Generic[R]):
    """The last item: what the work returned."""

    result: R


def watch(work: Callable[[Callable[[P], None]], R]) -> Iterator[P | Finished[R]]:
    """Run `work(report)` and yield every report, then its result; its exception is raised here.

    A reader that goes away (a closed page) does not end the work: the picture is still kept.
    """
    items: SimpleQueue[P | Finished[R] | BaseException] = SimpleQueue()

    def run() -> None:
        try:
            items.put(Finished(work(items.put)))
        except BaseException as error:  # noqa: BLE001 raised again in the reader's thread
            items.put(error)

    threading.Thread(target=run, name="studio-work", daemon=True).start()
    while True:
        item = items.get()
        if isinstance(item, BaseException):
            raise item
        yield item
        if isinstance(item, Finished):
            return


class StopFlags:
    """One stop flag for each running job, found by whoever started it.

    A flag is armed when the button is pressed, before the job's turn in the queue comes, so that a
    waiting job can be stopped as well.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._flags: dict[str, threading.Event] = {}

    def arm(self, owner: str) -> None:
        """Lower the flag of `owner`; a job of theirs that runs already keeps hearing it."""
        with self._lock:
            self._flags.setdefault(owner, threading.Event()).clear()

    def flag(self, owner: str) -> threading.Event:
        """The flag of `owner`; a lowered one if none was armed."""
        with self._lock:
            return self._flags.setdefault(owner, threading.Event())

    def raise_flag(self, owner: str) -> None:
        """Ask the job of `owner` to stop; without a job nothing happens."""
        with self._lock:
            if owner in self._flags:
                self._flags[owner].set()

    def forget(self, owner: str) -> None:
        """Drop the flag of a job that has ended."""
        with self._lock:
            self._flags.pop(owner, None)
