"""Following a job to its end, for pages (without a thread each) and for programs."""

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator

from studio.errors import JobError
from studio.jobs import Job, State
from studio.worker import Standing, Worker


async def follow(worker: Worker, identity: str) -> AsyncIterator[Standing]:
    """Yield how the job stands now and after each change, last when it is over.

    A reader that is slow misses what lies in between; one that goes away does not end the job.
    """
    loop, changed = asyncio.get_running_loop(), asyncio.Event()

    def wake() -> None:
        with contextlib.suppress(RuntimeError):  # the loop was closed with its page
            loop.call_soon_threadsafe(changed.set)

    with worker.listening(identity, wake):
        while True:
            changed.clear()
            standing = worker.standing(identity)
            yield standing
            if standing.job.is_over:
                return
            await changed.wait()


async def ended(worker: Worker, identity: str) -> Job:
    """The job when it is over; raises `JobError` unless it came to its end."""
    async for standing in follow(worker, identity):
        job = standing.job
    if job.state != State.DONE:
        raise JobError(job.error or f"The job was {job.state}.")
    return job


def wait(worker: Worker, identity: str, seconds: float | None = None) -> Standing:
    """How the job stands when it is over, or after `seconds`."""
    changed = threading.Event()
    ends = None if seconds is None else time.monotonic() + seconds
    with worker.listening(identity, changed.set):
        while True:
            changed.clear()
            standing = worker.standing(identity)
            if standing.job.is_over:
                return standing
            if not changed.wait(None if ends is None else max(ends - time.monotonic(), 0)):
                return standing
