"""One worker for all jobs that use the model: one after the other, watched, stopped, started again.

A runner is a function of a `Task`. It keeps what it finishes with `task.keep`, tells how far it is
with `task.report`, and raises `StoppedError` soon after `task.stop` is set.
"""

import functools
import logging
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from shira_diffusion.errors import ShiraError
from studio.errors import JobError, QueueFullError, StoppedError
from studio.jobs import Job, JobStore, State

WAITING = 64
"""How many jobs may wait before further ones are refused."""
PAUSE = 1.0
"""Seconds until the store is tried again after an error, such as a full disk."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Task:
    """What a runner gets: its job, when to stop, and where to tell of progress and results."""

    job: Job
    stop: threading.Event
    report: Callable[[Any], None]
    keep: Callable[[str], None]


Runner = Callable[[Task], None]
T = TypeVar("T")


@dataclass(frozen=True)
class Standing:
    """A job at one moment: how many come before it, and what its runner last reported."""

    job: Job
    ahead: int = 0
    progress: Any = None


class Worker:
    """Runs the jobs of a store whose kind is in `runners`; those left waiting by a restart too.

    Any thread may call any method. Jobs that the last process left running are `interrupted` and
    can be started again.
    """

    def __init__(
        self, store: JobStore, runners: Mapping[str, Runner], *, waiting: int = WAITING
    ) -> None:
        self.store = store
        self._runners = dict(runners)
        self._waiting = waiting
        self._lock = threading.Lock()
        self._work = threading.Condition(self._lock)
        self._listeners: dict[object, tuple[str, Callable[[], None]]] = {}
        self._running: tuple[str, threading.Event] | None = None
        self._progress: Any = None
        self._closing = False
        store.interrupt(self._runners)
        self._thread = threading.Thread(target=self._serve, name="studio-worker", daemon=True)
        self._thread.start()

    def submit(self, kind: str, settings: Mapping[str, Any]) -> Job:
        """Put a job in line; raises `QueueFullError` when too many wait already."""
        if kind not in self._runners:
            raise JobError(f"There is no work of the kind {kind!r}.")
        with self._lock:
            if self.store.waiting(self._runners) >= self._waiting:
                raise QueueFullError(
                    f"{self._waiting} jobs are waiting already: try again when some are done."
                )
            job = self.store.add(kind, settings)
            self._work.notify_all()
        return job

    def again(self, identity: str) -> Job:
        """Put a job that failed or was stopped in line once more, as a new job."""
        job = self.store.get(identity)
        if not job.is_over or job.state == State.DONE:
            raise JobError(f"This job is {job.state}: there is nothing to start again.")
        return self.submit(job.kind, job.settings)

    def cancel(self, identity: str) -> None:
        """Take a waiting job out of the line, or ask a running one to stop; else nothing."""
        with self._lock:
            left = self.store.leave_line(identity)
            if self._running and self._running[0] == identity:
                self._running[1].set()
        if left:
            self._tell()

    def standing(self, identity: str) -> Standing:
        """How a job stands now; raises `JobError` if there is none."""
        job = self.store.get(identity)
        with self._lock:
            is_on = bool(self._running and self._running[0] == identity)
            progress = self._progress if is_on else None
        return Standing(job, self.store.ahead(job, self._runners), progress)

    @contextmanager
    def listening(self, identity: str, changed: Callable[[], None]) -> Iterator[None]:
        """Within the block `changed` is called, in any thread, when the job's standing changes."""
        key = object()
        with self._lock:
            self._listeners[key] = identity, changed
        try:
            yield
        finally:
            with self._lock:
                del self._listeners[key]

    def close(self, seconds: float = 10.0) -> None:
        """Stop work; what ran is interrupted, what waits is kept for the next start."""
        with self._lock:
            self._closing = True
            if self._running:
                self._running[1].set()
            self._work.notify_all()
        self._thread.join(seconds)

    def _serve(self) -> None:
        while taken := self._insist(self._next):
            job, stop = taken
            self._tell()
            self._insist(functools.partial(self._end, job, *self._outcome(job, stop)))
            self._tell()

    def _insist(self, act: Callable[[], T]) -> T | None:
        """Do what needs the store, again and again while that fails; None once work is to stop."""
        while True:
            try:
                return act()
            except sqlite3.Error as error:
                log.warning("the store of jobs cannot be used: %s", error)
            with self._work:
                if self._work.wait_for(lambda: self._closing, PAUSE):
                    return None

    def _next(self) -> tuple[Job, threading.Event] | None:
        """The next job and what stops it, when there is one; None once work is to stop."""
        with self._lock:
            while not self._closing:
                if job := self.store.take(self._runners):
                    stop = threading.Event()
                    self._running, self._progress = (job.id, stop), None
                    return job, stop
                self._work.wait()
        return None

    def _end(self, job: Job, state: State, error: str) -> None:
        with self._lock:
            self.store.end(job.id, state, error)
            self._running, self._progress = None, None

    def _outcome(self, job: Job, stop: threading.Event) -> tuple[State, str]:
        def report(progress: Any) -> None:
            with self._lock:
                self._progress = progress
            self._tell(job.id)

        def keep(result: str) -> None:
            self.store.keep(job.id, result)
            self._tell(job.id)

        try:
            self._runners[job.kind](Task(job, stop, report, keep))
        except StoppedError as stopped:
            return (State.INTERRUPTED if self._closing else State.CANCELLED), str(stopped)
        except ShiraError as error:
            return State.FAILED, str(error)
        except Exception as error:
            # One job must not end the worker, whatever it raises.
            log.exception("job %s failed", job.id)
            return State.FAILED, f"Something unforeseen happened: {type(error).__name__}: {error}"
        return State.DONE, ""

    def _tell(self, identity: str | None = None) -> None:
        """Call who listens to one job, or to any: when one begins or ends, the others move up."""
        with self._lock:
            listeners = list(self._listeners.values())
        for listened, changed in listeners:
            if identity in (None, listened):
                changed()
