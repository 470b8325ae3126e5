"""A run as a process of its own, which outlives the page and the studio that started it."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]
POLITENESS = 5
"""How many steps of niceness a run stands back behind the pictures that people wait for."""


@dataclass(frozen=True)
class Process:
    """A process by id and by start (seconds since 1970): ids are given out again."""

    pid: int
    started: float

    def is_alive(self) -> bool:
        """Whether it still runs; one that has ended but was not waited for does not."""
        return self._found() is not None

    def stop(self) -> None:
        """Ask it to end as Ctrl-C does; the trainer finishes its step and saves first."""
        found = self._found()
        if found:
            found.terminate()

    def _found(self) -> psutil.Process | None:
        try:
            found = psutil.Process(self.pid)
            # The clock may have been set a little since.
            same = abs(found.create_time() - self.started) < 1
            return found if same and found.status() != psutil.STATUS_ZOMBIE else None
        except psutil.Error:
            return None


def trainer(arguments: Sequence[str]) -> list[str]:
    """The command that runs the trainer of this checkout."""
    return [sys.executable, "-m", "training", *arguments]


def launch(arguments: Sequence[str], folder: Path) -> subprocess.Popen[bytes]:
    """Start the trainer apart from this process; its words go to two files in `folder`.

    `read_process` finds it again, from any process.
    """
    with (folder / "output.txt").open("ab") as output, (folder / "errors.txt").open("wb") as errors:
        child = subprocess.Popen(
            trainer(arguments),
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=errors,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            start_new_session=True,
        )
    found = psutil.Process(child.pid)
    process = Process(child.pid, found.create_time())
    partial = folder / "process.partial"
    partial.write_text(json.dumps(asdict(process)), encoding="utf-8")
    partial.replace(_path(folder))
    if sys.platform != "win32":
        found.nice(POLITENESS)
    return child


def read_process(folder: Path) -> Process | None:
    """What `launch` started last in this folder."""
    try:
        return Process(**json.loads(_path(folder).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _path(folder: Path) -> Path:
    return folder / "process.json"
