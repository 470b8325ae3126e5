"""Carries out a plan: trains what is missing, draws what has no record yet, appends."""

import math
import statistics
import time
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluation.bench import Bench
from evaluation.drawings import Drawing, all_drawings
from evaluation.plan import Plan
from evaluation.pool import Crew
from evaluation.records import Lines
from evaluation.trainings import Training, all_trainings
from shira_diffusion.errors import ShiraError

WORK = Path("runs/evaluation")


@dataclass(frozen=True)
class Train:
    """A piece of work: one adapter."""

    training: Training

    def __call__(self, bench: Bench) -> dict[str, Any]:
        """Return the line about the adapter."""
        return bench.train(self.training)


@dataclass(frozen=True)
class Draw:
    """A piece of work: the pictures of one mix."""

    drawing: Drawing

    def __call__(self, bench: Bench) -> list[dict[str, Any]]:
        """Return the records of the pictures."""
        return bench.draw(self.drawing)


Piece = Train | Draw


@dataclass(frozen=True)
class Place:
    """Where a plan's results are: the folder of the plan, and the one that plans share."""

    folder: Path
    work: Path

    @property
    def records(self) -> Lines:
        """One line a picture."""
        return Lines(self.folder / "records.jsonl")

    @property
    def adapters(self) -> Lines:
        """One line an adapter."""
        return Lines(self.folder / "adapters.jsonl")

    @property
    def failures(self) -> Lines:
        """One line an adapter or drawing that could not be made."""
        return Lines(self.folder / "failures.jsonl")

    @property
    def pictures(self) -> Path:
        """Pictures for the gallery, by their record's key."""
        return self.folder / "pictures"


@dataclass(frozen=True)
class Progress:
    """How far it is: adapters and drawings done of all, and what failed."""

    trained: int
    trainings: int
    drawn: int
    drawings: int
    failures: tuple[str, ...] = ()

    @property
    def finished(self) -> bool:
        """Whether everything is done."""
        return self.trained == self.trainings and self.drawn == self.drawings


def carry_out(
    plan: Plan,
    place: Place,
    crew: Crew,
    *,
    until: float = math.inf,
    report: Callable[[Progress], None] = lambda _: None,
) -> Progress:
    """Do what the plan lacks and return how far it came.

    After `until` seconds nothing new is begun; nor is, shortly before, what would take longer than
    the time that is left, as far as that is known. An adapter that cannot be trained is a failure
    that holds up nothing but its own pictures.
    """
    board = _Board.of(plan, place)
    deadline = time.monotonic() + until
    at_work: dict[Future[Any], tuple[Piece, float]] = {}
    report(board.progress)
    while True:
        while len(at_work) < crew.size and (piece := board.take(deadline - time.monotonic())):
            started = time.monotonic()
            at_work[crew.submit(piece)] = (piece, started)
        if not at_work:
            return board.progress
        for future in wait(at_work, return_when=FIRST_COMPLETED).done:
            piece, started = at_work.pop(future)
            board.settle(piece, future, time.monotonic() - started)
        report(board.progress)


class _Board:
    """What is left to do, what is done and what failed."""

    def __init__(self, place: Place, trainings: Iterable[Training], drawings: Iterable[Drawing]):
        self._place = place
        self._trainings = {training.name: training for training in trainings}
        self._drawings = list(drawings)
        self._done = {str(record["key"]) for record in place.records.read()}
        listed = {line["name"] for line in place.adapters.read()}
        self._ready = {
            name
            for name, training in self._trainings.items()
            if name in listed and training.file(place.work).is_file()
        }
        self._to_train = [one for name, one in self._trainings.items() if name not in self._ready]
        self._to_draw = [
            one for one in self._drawings if not self._done.issuperset(one.every_key())
        ]
        self._drawn = len(self._drawings) - len(self._to_draw)
        self._failures: list[str] = []
        self._seconds: dict[type, list[float]] = {Train: [], Draw: []}

    @classmethod
    def of(cls, plan: Plan, place: Place) -> "_Board":
        """Set out all that the plan asks for."""
        return cls(place, all_trainings(plan), all_drawings(plan))

    @property
    def progress(self) -> Progress:
        """How far it is."""
        return Progress(
            len(self._ready),
            len(self._trainings),
            self._drawn,
            len(self._drawings),
            tuple(self._failures),
        )

    def take(self, seconds: float) -> Piece | None:
        """Return what can be begun and ended in so many seconds: drawings first, in their order."""
        if self._fits(Draw, seconds):
            for drawing in self._to_draw:
                if self._ready.issuperset(one.name for one in drawing.trainings):
                    self._to_draw.remove(drawing)
                    return Draw(drawing)
        if self._fits(Train, seconds):
            for training in self._to_train:
                if self._ready.issuperset(one.name for one in training.avoids):
                    self._to_train.remove(training)
                    return Train(training)
        return None

    def settle(self, piece: Piece, future: Future[Any], seconds: float) -> None:
        """Write down what came of a piece of work; raises what is no fault of the piece itself."""
        self._seconds[type(piece)].append(seconds)
        try:
            found = future.result()
        except BrokenExecutor:
            raise
        except (ShiraError, RuntimeError) as error:  # RuntimeError: a GPU's memory is full, say.
            self._failed(piece, str(error))
            return
        if isinstance(piece, Train):
            self._place.adapters.append([found])
            self._ready.add(piece.training.name)
            return
        self._place.records.append(one for one in found if one["key"] not in self._done)
        self._drawn += 1

    def _failed(self, piece: Piece, message: str) -> None:
        if isinstance(piece, Train):
            name, recipe = piece.training.name, piece.training.recipe.name
        else:
            name, recipe = "+".join(piece.drawing.adapters), piece.drawing.method.recipe
        self._failures.append(f"{name}: {message}")
        self._place.failures.append([{"name": name, "recipe": recipe, "message": message}])

    def _fits(self, kind: type, seconds: float) -> bool:
        known = self._seconds[kind][-9:]
        return seconds > (statistics.median(known) if known else 0)
