"""Trainings: ordered on the page, run one after the other, found again after any restart.

A training is a folder `<id>` with `order.json`, `images/<name>/` (the set as it was ordered),
`process.json` once it was started, what it said in `output.txt` and `errors.txt`, and the
trainer's own run folder `run/`. Empty files say what people want: `wanted` to have it run as soon
as none does, `stop` to have it stopped. Nothing else is remembered: the state is read from there.
"""

import re
import secrets
import subprocess
import threading
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path

from shira_diffusion.errors import ShiraError
from studio.shelf.trash import Discarded, Trash
from studio.workshop.order import Order, Places, command
from studio.workshop.process import ROOT, launch, read_process
from studio.workshop.progress import Logs, Progress
from studio.workshop.sets import ImageSets

_ID = re.compile(r"\d{8}-\d{6}-[0-9a-f]{12}")
_ORDER, _WANTED, _STOP, _RUN, _IMAGES = "order.json", "wanted", "stop", "run", "images"
_LOG = f"{_RUN}/events.jsonl"
MOST_WAITING = 8


class TrainingError(ShiraError):
    """A training is not there, or what was asked of it cannot be done now."""


class State(Enum):
    """What a training does; the page shows the value."""

    WAITING = "waiting"
    PREPARING = "preparing"
    TRAINING = "training"
    STOPPING = "stopping"
    STOPPED = "stopped"
    INTERRUPTED = "interrupted"
    FAILED = "failed"
    FINISHED = "finished"


ALIVE = frozenset({State.PREPARING, State.TRAINING, State.STOPPING})
RESUMABLE = frozenset({State.STOPPED, State.INTERRUPTED, State.FAILED})


@dataclass(frozen=True)
class Training:
    """A training at one moment; `problem` says why it failed."""

    id: str
    folder: Path
    order: Order
    state: State
    progress: Progress
    problem: str = ""

    @property
    def is_over(self) -> bool:
        """Whether it is finished, so that its adapter's name counts no more than others."""
        return self.state is State.FINISHED

    @property
    def pictures(self) -> Path:
        """Where the images and captions lie that it learns from."""
        return self.folder / _IMAGES / self.order.name

    @property
    def samples(self) -> Path:
        """Where its samples lie."""
        return self.folder / _RUN / "samples"

    @property
    def checkpoint(self) -> bool:
        """Whether it can go on from where it was rather than from the beginning."""
        return any((self.folder / _RUN / "checkpoints").glob("step-*/state.pt"))


class Trainings:
    """All trainings below one folder, of which one runs at a time; `advance` keeps them going."""

    def __init__(self, folder: Path, places: Places) -> None:
        self.folder = folder
        self.trash = Trash(folder / ".trash")
        self._places = places
        self._logs = Logs()
        self._lock = threading.RLock()
        self._child: subprocess.Popen[bytes] | None = None

    def all(self) -> list[Training]:
        """Every training, newest first."""
        if not self.folder.is_dir():
            return []
        ids = (path.name for path in self.folder.iterdir() if _ID.fullmatch(path.name))
        found = (self._read(one) for one in sorted(ids, reverse=True))
        return [training for training in found if training]

    def names(self) -> set[str]:
        """The adapters that unfinished trainings are to make."""
        return {one.order.name for one in self.all() if not one.is_over}

    def find(self, training_id: str) -> Training:
        """The training of this id; raises `TrainingError` if there is none."""
        found = self._read(training_id) if _ID.fullmatch(training_id or "") else None
        if found is None:
            raise TrainingError("This training is not there any more.")
        return found

    @property
    def running(self) -> Training | None:
        """The one that has a process now."""
        return next((one for one in self.all() if one.state in ALIVE), None)

    def order(self, order: Order, sets: ImageSets, set_id: str) -> str:
        """Keep a copy of the images and put the training in line; return its id."""
        waiting = [one for one in self.all() if one.state is State.WAITING]
        if len(waiting) >= MOST_WAITING:
            raise TrainingError(
                f"{MOST_WAITING} trainings are waiting already: let one of them end."
            )
        found = sets.find(set_id)
        if not found.images:
            raise TrainingError("There are no pictures to learn from: drop some first.")
        if found.fault:
            raise TrainingError(found.fault)
        training_id = f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(6)}"
        folder = self.folder / training_id
        sets.copy_to(set_id, folder / _IMAGES / order.name)
        (folder / _WANTED).touch()
        partial_order = folder / "order.partial"
        partial_order.write_text(order.to_json(), encoding="utf-8")
        partial_order.replace(folder / _ORDER)
        self.advance()
        return training_id

    def stop(self, training_id: str) -> None:
        """Ask it to finish its step, save and end; asked again, it ends at once."""
        with self._lock:
            training = self.find(training_id)
            (training.folder / _WANTED).unlink(missing_ok=True)
            if training.state is State.WAITING or training.state in ALIVE:
                (training.folder / _STOP).touch()
            process = read_process(training.folder)
            if process:
                process.stop()

    def resume(self, training_id: str) -> None:
        """Put it in line again: it goes on from its last checkpoint."""
        with self._lock:
            training = self.find(training_id)
            if training.state not in RESUMABLE:
                raise TrainingError(f"This training is {training.state.value} and cannot go on.")
            (training.folder / _STOP).unlink(missing_ok=True)
            (training.folder / _WANTED).touch()
        self.advance()

    def remove(self, training_id: str) -> Discarded:
        """Throw away a training that does not run; its adapter stays."""
        with self._lock:
            training = self.find(training_id)
            if training.state in ALIVE:
                raise TrainingError("It is still running: stop it first.")
            self._logs.forget(training.folder / _LOG)
            return self.trash.discard(training.folder, training.order.title)

    def put_back(self, ticket: str) -> None:
        """Bring back a training that was thrown away."""
        self.trash.restore(ticket, self.folder / self.trash.find(ticket).name)

    def advance(self) -> list[Training]:
        """Start the next in line if none runs; harmless at any time.

        Returns every training as it was before, newest first.
        """
        with self._lock:
            if self._child and self._child.poll() is not None:
                self._child = None
            found = self.all()
            waiting = [one for one in found if one.state is State.WAITING]
            if waiting and not any(one.state in ALIVE for one in found):
                self._start(min(waiting, key=lambda one: _since(one.folder / _WANTED)))
            return found

    def _start(self, training: Training) -> None:
        try:
            # Another studio on the same folder may have been quicker.
            (training.folder / _WANTED).unlink()
        except FileNotFoundError:
            return
        arguments = command(
            training.order,
            self._places,
            data=training.pictures,
            run=training.folder / _RUN,
        )
        if training.checkpoint:
            arguments.append("--resume")
        self._child = launch(arguments, training.folder)

    def _read(self, training_id: str) -> Training | None:
        folder = self.folder / training_id
        try:
            order = Order.from_json((folder / _ORDER).read_text(encoding="utf-8"))
        except (OSError, ValueError, TypeError):
            return None
        progress = self._logs.read(folder / _LOG)
        state = _state(folder, progress)
        problem = self._problem(folder, progress) if state is State.FAILED else ""
        return Training(training_id, folder, order, state, progress, problem)

    def _problem(self, folder: Path, progress: Progress) -> str:
        message = progress.message or _last_words(folder / "errors.txt")
        # The page may be open to others, whom this machine's folders do not concern.
        for place in (folder, self.folder, self._places.adapters, ROOT):
            message = message.replace(f"{place}/", "").replace(str(place), place.name)
        return message


def _state(folder: Path, progress: Progress) -> State:
    stopping = (folder / _STOP).exists()
    if (folder / _WANTED).exists():
        return State.WAITING
    process = read_process(folder)
    if process and process.is_alive():
        if stopping:
            return State.STOPPING
        return State.TRAINING if progress.stepping else State.PREPARING
    if progress.last == "finished":
        return State.FINISHED
    if progress.last == "stopped" or stopping:
        return State.STOPPED
    if progress.last == "failed" or _was_refused(folder):
        return State.FAILED
    return State.INTERRUPTED


def _was_refused(folder: Path) -> bool:
    """Whether the trainer complained and ended before it wrote into its log."""
    errors, log = folder / "errors.txt", folder / _LOG
    return _size(errors) > 0 and _since(log) < _since(folder / "process.json")


def _since(path: Path) -> int:
    return path.stat().st_mtime_ns if path.exists() else 0


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _last_words(file: Path) -> str:
    """The end of what the trainer complained of: of a traceback the last line alone."""
    try:
        lines = file.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    except OSError:
        return ""
    if any(line.startswith("Traceback") for line in lines):
        return lines[-1]
    return "\n".join(lines[-12:])
