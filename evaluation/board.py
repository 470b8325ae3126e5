"""What of a plan is done, what is left to do, and what failed."""

import statistics
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import BrokenExecutor, Future
from typing import Any

from evaluation.drawings import Drawing, all_drawings
from evaluation.pieces import Draw, Piece, Train
from evaluation.place import Place
from evaluation.plan import Plan
from evaluation.progress import Progress
from evaluation.trainings import Training, all_trainings
from shira_diffusion.errors import ShiraError

_MOST_DEATHS = 3


class Board:
    """Hands out pieces of work that can be begun, and writes down what came of them."""

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
        self._lost: set[str] = set()  # adapters that failed, and those that avoid one of them
        self._deaths: Counter[str] = Counter()
        self._seconds: dict[type, list[float]] = {Train: [], Draw: []}

    @classmethod
    def of(cls, plan: Plan, place: Place) -> "Board":
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
            self._left,
        )

    @property
    def _left(self) -> int:
        """How many pieces can be begun, now or when others are done."""
        waiting: list[Training | Drawing] = [*self._to_train, *self._to_draw]
        return sum(self._lost.isdisjoint(_needs(work)) for work in waiting)

    def take(self, seconds: float) -> Piece | None:
        """Return what can be begun and ended in so many seconds: drawings first, in their order."""
        if self._fits(Draw, seconds):
            for drawing in self._to_draw:
                if self._ready.issuperset(_needs(drawing)):
                    self._to_draw.remove(drawing)
                    return Draw(drawing)
        if self._fits(Train, seconds):
            for training in self._to_train:
                if self._ready.issuperset(_needs(training)):
                    self._to_train.remove(training)
                    return Train(training)
        return None

    def settle(self, piece: Piece, future: Future[Any], seconds: float) -> None:
        """Write down what came of a piece of work."""
        try:
            found = future.result()
        except BrokenExecutor:
            self._died(piece)
        except ShiraError as error:
            self._failed(piece, str(error))
        except Exception as error:  # noqa: BLE001
            # Whatever it is, of memory or in a library: the others go on.
            self._failed(piece, f"{type(error).__name__}: {error}")
        else:
            # What fails, mostly at once, says nothing of how long work takes.
            self._seconds[type(piece)].append(seconds)
            self._succeeded(piece, found)

    def _succeeded(self, piece: Piece, found: Any) -> None:
        if isinstance(piece, Train):
            self._place.adapters.append([found])
            self._ready.add(piece.training.name)
            return
        self._place.records.append(one for one in found if one["key"] not in self._done)
        self._drawn += 1

    def _died(self, piece: Piece) -> None:
        """Begin a piece anew whose process died, for want of memory perhaps that others had."""
        self._deaths[piece.key] += 1
        if self._deaths[piece.key] == _MOST_DEATHS:
            self._failed(piece, "its worker died each time it was begun; is there enough memory?")
        elif isinstance(piece, Train):
            self._to_train.insert(0, piece.training)
        else:
            self._to_draw.insert(0, piece.drawing)

    def _failed(self, piece: Piece, message: str) -> None:
        if isinstance(piece, Train):
            self._lose(piece.training.name)
        self._failures.append(f"{piece.name}: {message}")
        line = {"key": piece.key, "name": piece.name, "recipe": piece.recipe, "message": message}
        self._place.failures.append([line])

    def _lose(self, name: str) -> None:
        """Give up an adapter and, as they need it, those that avoid its entries."""
        self._lost.add(name)
        for training in self._to_train:
            if training.name not in self._lost and name in _needs(training):
                self._lose(training.name)

    def _fits(self, kind: type, seconds: float) -> bool:
        known = self._seconds[kind][-9:]
        return seconds > (statistics.median(known) if known else 0)


def _needs(work: Training | Drawing) -> list[str]:
    """Name the adapters that have to be there first."""
    return [one.name for one in (work.avoids if isinstance(work, Training) else work.trainings)]
