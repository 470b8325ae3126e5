"""Jobs: their order, their end, what a restart leaves, who is told."""

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from shira_diffusion.errors import SettingError
from studio import worker as worker_module
from studio.errors import JobError, QueueFullError, StoppedError
from studio.following import follow, wait
from studio.jobs import JobStore, State
from studio.worker import Task, Worker

ROOT = Path(__file__).parent.parent


class Bench:
    """Runners that wait for the test: `steps` gives one step each, `log` tells what ran."""

    def __init__(self) -> None:
        self.steps = threading.Semaphore(0)
        self.begun = threading.Semaphore(0)
        self.log: list[str] = []

    def __call__(self, task: Task) -> None:
        self.begun.release()
        for step in range(task.job.settings["steps"]):
            self.steps.acquire()
            if task.stop.is_set():
                raise StoppedError("Stopped.")
            task.report(step + 1)
            task.keep(f"{task.job.settings['name']} {step}")
        self.log.append(task.job.settings["name"])


def fail(task: Task) -> None:
    raise SettingError(task.job.settings["words"])


def crash(task: Task) -> None:
    raise ZeroDivisionError("by zero")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[JobStore]:
    store = JobStore(tmp_path / "state")
    yield store
    store.close()


@pytest.fixture
def bench() -> Bench:
    return Bench()


@pytest.fixture
def worker(store: JobStore, bench: Bench) -> Iterator[Worker]:
    worker = Worker(store, {"work": bench, "fail": fail, "crash": crash}, waiting=3)
    yield worker
    bench.steps.release(100)
    worker.close()


def work(name: str, steps: int = 0) -> dict[str, object]:
    return {"name": name, "steps": steps}


def test_jobs_run_in_order_and_keep_their_results(worker: Worker, bench: Bench) -> None:
    jobs = [worker.submit("work", work(name, 1)) for name in "ab"]
    bench.begun.acquire()
    assert [worker.standing(job.id).ahead for job in jobs] == [0, 1]
    assert worker.standing(jobs[1].id).job.state == State.QUEUED
    bench.steps.release(2)
    over = wait(worker, jobs[1].id, 10).job
    assert (over.state, over.results) == (State.DONE, ("b 0",))
    assert over.created <= over.started <= over.ended
    assert bench.log == ["a", "b"]


def test_a_running_job_stops_at_its_next_step_and_the_next_one_starts(
    worker: Worker, bench: Bench
) -> None:
    first, second = (worker.submit("work", work(name, 5)) for name in "ab")
    bench.begun.acquire()
    bench.steps.release()
    while not worker.standing(first.id).job.results:
        pass
    worker.cancel(first.id)
    bench.steps.release()
    over = wait(worker, first.id, 10).job
    assert (over.state, over.results, over.error) == (State.CANCELLED, ("a 0",), "Stopped.")
    bench.begun.acquire()
    assert worker.standing(second.id).job.state == State.RUNNING


def test_a_waiting_job_leaves_the_line_and_the_others_move_up(worker: Worker, bench: Bench) -> None:
    jobs = [worker.submit("work", work(name, 1)) for name in "abc"]
    bench.begun.acquire()
    worker.cancel(jobs[1].id)
    assert worker.standing(jobs[1].id).job.state == State.CANCELLED
    assert worker.standing(jobs[2].id).ahead == 1
    bench.steps.release(3)
    assert wait(worker, jobs[2].id, 10).job.state == State.DONE
    assert bench.log == ["a", "c"]


def test_the_line_is_bounded(worker: Worker, bench: Bench) -> None:
    worker.submit("work", work("a", 1))
    bench.begun.acquire()
    for name in "bcd":
        worker.submit("work", work(name))
    with pytest.raises(QueueFullError, match="3 jobs"):
        worker.submit("work", work("e"))


def test_failures_are_told_and_do_not_end_the_worker(worker: Worker) -> None:
    told = wait(worker, worker.submit("fail", {"words": "too big"}).id, 10).job
    assert (told.state, told.error) == (State.FAILED, "too big")
    crashed = wait(worker, worker.submit("crash", {}).id, 10).job
    assert crashed.state == State.FAILED
    assert "ZeroDivisionError" in crashed.error
    assert wait(worker, worker.submit("work", work("a")).id, 10).job.state == State.DONE


def test_a_store_that_fails_for_a_while_does_not_end_the_worker(
    worker: Worker,
    bench: Bench,
    store: JobStore,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(worker_module, "PAUSE", 0.01)
    fails = [worker.submit("work", work("a", 1)), worker.submit("work", work("b"))]
    bench.begun.acquire()
    store._connection.execute("PRAGMA query_only = ON")  # as on a full disk: it reads all the same
    bench.steps.release()
    while not caplog.records[1:]:
        time.sleep(0.01)
    store._connection.execute("PRAGMA query_only = OFF")
    over = [wait(worker, job.id, 10).job.state for job in fails]
    assert over == [State.FAILED, State.DONE]  # the first one's result could not be kept
    store._connection.execute("PRAGMA query_only = ON")
    caplog.clear()
    with worker._work:
        worker._work.notify_all()
    while not caplog.records:
        time.sleep(0.01)
    store._connection.execute("PRAGMA query_only = OFF")
    assert wait(worker, worker.submit("work", work("c")).id, 10).job.state == State.DONE


def test_only_what_did_not_come_to_its_end_starts_again(worker: Worker, bench: Bench) -> None:
    failed = wait(worker, worker.submit("fail", {"words": "once"}).id, 10).job
    again = worker.again(failed.id)
    assert (again.settings, again.id != failed.id) == ({"words": "once"}, True)
    done = wait(worker, worker.submit("work", work("a")).id, 10).job
    with pytest.raises(JobError, match="done"):
        worker.again(done.id)
    for call in (worker.again, worker.standing):
        with pytest.raises(JobError, match="no job"):
            call("../jobs.sqlite")
    with pytest.raises(JobError, match="kind"):
        worker.submit("paint", {})


def test_what_a_dead_process_left_is_interrupted_or_still_in_line(tmp_path: Path) -> None:
    script = f"""
import os, sys, threading
from pathlib import Path
from studio.jobs import JobStore
from studio.worker import Worker
begun = threading.Event()
def hang(task):
    task.keep("half")
    begun.set()
    threading.Event().wait()
worker = Worker(JobStore(Path({str(tmp_path)!r})), {{"work": hang}})
worker.submit("work", {{"name": "a", "steps": 0}})
worker.submit("work", {{"name": "b", "steps": 0}})
begun.wait()
os._exit(1)
"""
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, timeout=60, check=False)
    store, bench = JobStore(tmp_path), Bench()
    worker = Worker(store, {"work": bench})
    second, first = store.recent(2)
    assert wait(worker, second.id, 10).job.state == State.DONE
    assert (first.state, first.results) == (State.INTERRUPTED, ("half",))
    assert wait(worker, worker.again(first.id).id, 10).job.state == State.DONE
    assert bench.log == ["b", "a"]
    worker.close()
    store.close()


def test_closing_interrupts_what_runs_and_keeps_what_waits(store: JobStore, bench: Bench) -> None:
    worker = Worker(store, {"work": bench})
    jobs = [worker.submit("work", work(name, 1)) for name in "ab"]
    bench.begun.acquire()
    closing = threading.Thread(target=worker.close)
    closing.start()
    while not worker._closing:
        pass
    bench.steps.release()
    closing.join()
    assert [store.get(job.id).state for job in jobs] == [State.INTERRUPTED, State.QUEUED]


def test_a_folder_serves_one_process(store: JobStore, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="another studio"):
        JobStore(tmp_path / "state")


def test_recent_jobs_by_state_and_kind(store: JobStore) -> None:
    jobs = [store.add(kind, {}) for kind in "aba"]
    assert [job.id for job in store.recent(2)] == [jobs[2].id, jobs[1].id]
    assert [job.id for job in store.recent(9, kind="b")] == [jobs[1].id]
    store.end(jobs[1].id, State.FAILED, "no")
    assert [job.error for job in store.recent(9, states=[State.FAILED])] == ["no"]
    assert not store.end(jobs[1].id, State.DONE)
    assert store.get(jobs[1].id).state == State.FAILED


def test_followers_see_the_wait_the_progress_and_the_end(worker: Worker, bench: Bench) -> None:
    first, second = (worker.submit("work", work(name, 2)) for name in "ab")
    bench.begun.acquire()

    async def read() -> list[tuple[str, int, object]]:
        seen = []
        async for standing in follow(worker, second.id):
            point = standing.job.state, standing.ahead, standing.progress
            if point not in seen:
                # The first job takes two steps, then each sight of the second gives it one.
                bench.steps.release(1 if seen else 2)
            seen.append(point)
        return seen

    seen = asyncio.run(asyncio.wait_for(read(), 10))
    assert seen[0] == (State.QUEUED, 1, None)
    assert seen[-1] == (State.DONE, 0, None)
    assert (State.RUNNING, 0, 1) in seen
    assert not worker._listeners
    assert worker.standing(first.id).job.state == State.DONE
