"""Jobs in an SQLite file: what was asked for, how far it came, what came of it.

They outlive pages and restarts. One process at a time has the file, so whatever it finds running
when it opens it was cut short by the end of another.
"""

import json
import secrets
import sqlite3
import threading
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from shira_diffusion.errors import SettingError
from studio.errors import JobError

KEPT = 2000
"""How many jobs that have ended are remembered."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS jobs (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    kind TEXT NOT NULL,
    settings TEXT NOT NULL,
    state TEXT NOT NULL,
    created REAL NOT NULL,
    started REAL,
    ended REAL,
    results TEXT NOT NULL DEFAULT '[]',
    error TEXT NOT NULL DEFAULT ''
);
CREATE INDEX IF NOT EXISTS jobs_by_state ON jobs (state, number);
"""
_COLUMNS = "number, id, kind, settings, state, created, started, ended, results, error"


class State(StrEnum):
    """Where a job is in its life; the first two are before its end."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"
    INTERRUPTED = "interrupted"


ENDED = (State.DONE, State.FAILED, State.CANCELLED, State.INTERRUPTED)


@dataclass(frozen=True)
class Job:
    """One piece of work; times are in seconds since the epoch.

    `settings` are what its runner needs, as JSON values. `results` are files or ids that it has
    finished, in order, also when it did not come to its end.
    """

    number: int
    id: str
    kind: str
    settings: Mapping[str, Any]
    state: State
    created: float
    started: float | None = None
    ended: float | None = None
    results: tuple[str, ...] = ()
    error: str = ""

    @property
    def is_over(self) -> bool:
        """Whether nothing more will come of it."""
        return self.state in ENDED


class JobStore:
    """The jobs in `folder`; any thread may call any method.

    Raises `SettingError` while another process has the folder. Close it at the end.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._held = FileLock(folder / "lock")
        try:
            self._held.acquire(blocking=False)
        except Timeout as error:
            raise SettingError(
                f"another studio is at work in {folder.parent}; end it, or choose another --outputs"
            ) from error
        self._lock = threading.Lock()
        self._connection = sqlite3.connect(
            folder / "jobs.sqlite", isolation_level=None, check_same_thread=False
        )
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = NORMAL")
        self._connection.executescript(_SCHEMA)
        self._prune()

    def close(self) -> None:
        """Let go of the folder; a second time does nothing."""
        with self._lock:
            self._connection.close()
        self._held.release()

    def add(self, kind: str, settings: Mapping[str, Any]) -> Job:
        """Put a new job at the end of the line."""
        content = json.dumps(settings, ensure_ascii=False, allow_nan=False)
        identity = secrets.token_hex(16)
        self._run(
            "INSERT INTO jobs (id, kind, settings, state, created) VALUES (?, ?, ?, ?, ?)",
            (identity, kind, content, State.QUEUED, time.time()),
        )
        return self.get(identity)

    def get(self, identity: str) -> Job:
        """The job with this id; raises `JobError` if there is none."""
        rows = self._jobs("WHERE id = ?", (identity,))
        if not rows:
            raise JobError(f"There is no job {identity[:60]!r} (any more).")
        return rows[0]

    def take(self, kinds: Collection[str]) -> Job | None:
        """Mark the first job in line of these kinds as running and return it; None without one."""
        rows = self._run(
            "UPDATE jobs SET state = ?, started = ? WHERE number = ("
            f"SELECT min(number) FROM jobs WHERE state = ? AND kind IN ({_marks(kinds)})"
            ") RETURNING id",
            (State.RUNNING, time.time(), State.QUEUED, *kinds),
        )
        return self.get(rows[0][0]) if rows else None

    def keep(self, identity: str, result: str) -> None:
        """Add a result to a job."""
        self._run(
            "UPDATE jobs SET results = json_insert(results, '$[#]', ?) WHERE id = ?",
            (result, identity),
        )

    def end(self, identity: str, state: State, error: str = "") -> bool:
        """End a job that is not over; whether there was one."""
        assert state in ENDED
        return bool(
            self._run(
                "UPDATE jobs SET state = ?, ended = ?, error = ? "
                "WHERE id = ? AND state IN (?, ?) RETURNING id",
                (state, time.time(), error, identity, State.QUEUED, State.RUNNING),
            )
        )

    def leave_line(self, identity: str) -> bool:
        """Cancel a job that still waits; whether it did."""
        return bool(
            self._run(
                "UPDATE jobs SET state = ?, ended = ? WHERE id = ? AND state = ? RETURNING id",
                (State.CANCELLED, time.time(), identity, State.QUEUED),
            )
        )

    def interrupt(self, kinds: Collection[str]) -> int:
        """Mark jobs of these kinds that a process now gone left running; how many there were."""
        rows = self._run(
            "UPDATE jobs SET state = ?, ended = ? WHERE state = ? "
            f"AND kind IN ({_marks(kinds)}) RETURNING id",
            (State.INTERRUPTED, time.time(), State.RUNNING, *kinds),
        )
        return len(rows)

    def ahead(self, job: Job, kinds: Collection[str]) -> int:
        """How many jobs of `kinds` come before a waiting one, the running one included.

        0 for a job that waits no more.
        """
        if job.state != State.QUEUED:
            return 0
        rows = self._run(
            f"SELECT count(*) FROM jobs WHERE state IN (?, ?) AND number < ? "
            f"AND kind IN ({_marks(kinds)})",
            (State.QUEUED, State.RUNNING, job.number, *kinds),
        )
        return int(rows[0][0])

    def waiting(self, kinds: Collection[str]) -> int:
        """How many jobs of `kinds` are in line."""
        rows = self._run(
            f"SELECT count(*) FROM jobs WHERE state = ? AND kind IN ({_marks(kinds)})",
            (State.QUEUED, *kinds),
        )
        return int(rows[0][0])

    def recent(
        self, limit: int, *, states: Collection[str] = (), kind: str = ""
    ) -> tuple[Job, ...]:
        """The newest jobs, newest first; those of some states or a kind if named."""
        clauses = ["1"]
        values: list[Any] = []
        if states:
            clauses.append(f"state IN ({_marks(states)})")
            values += states
        if kind:
            clauses.append("kind = ?")
            values.append(kind)
        order = f"WHERE {' AND '.join(clauses)} ORDER BY number DESC LIMIT ?"
        return self._jobs(order, (*values, limit))

    def _prune(self) -> None:
        self._run(
            f"DELETE FROM jobs WHERE state IN ({_marks(ENDED)}) AND number NOT IN "
            "(SELECT number FROM jobs ORDER BY number DESC LIMIT ?)",
            (*ENDED, KEPT),
        )

    def _jobs(self, rest: str, values: Sequence[Any]) -> tuple[Job, ...]:
        rows = self._run(f"SELECT {_COLUMNS} FROM jobs {rest}", values)
        return tuple(_job(row) for row in rows)

    def _run(self, statement: str, values: Sequence[Any]) -> list[Any]:
        with self._lock:
            return self._connection.execute(statement, values).fetchall()


def _marks(values: Collection[Any]) -> str:
    return ", ".join("?" * len(values))


def _job(row: Sequence[Any]) -> Job:
    number, identity, kind, settings, state, created, started, ended, results, error = row
    return Job(
        number=number,
        id=identity,
        kind=kind,
        settings=json.loads(settings),
        state=State(state),
        created=created,
        started=started,
        ended=ended,
        results=tuple(json.loads(results)),
        error=error,
    )
