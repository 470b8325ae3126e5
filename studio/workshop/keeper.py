"""A thread that keeps the line of trainings moving while the studio runs."""

import logging
import threading
from collections.abc import Callable, Iterable

from studio.workshop.runs import State, Training, Trainings

SECONDS = 1.0

log = logging.getLogger(__name__)


class Keeper:
    """Starts the next training when one ends, and calls `on_finished` when one is finished."""

    def __init__(self, trainings: Trainings, on_finished: Callable[[], object]) -> None:
        self._trainings = trainings
        self._on_finished = on_finished
        self._end = threading.Event()
        self._finished = _finished(trainings.all())
        self._thread = threading.Thread(target=self._run, name="trainings", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread; trainings go on."""
        self._end.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._end.wait(SECONDS):
            try:
                finished = _finished(self._trainings.advance())
                if finished - self._finished:
                    self._on_finished()
                self._finished = finished
            except OSError as error:  # a full disk, a folder that is away: the next turn may do
                log.warning("the line of trainings waits: %s", error)


def _finished(trainings: Iterable[Training]) -> set[str]:
    return {one.id for one in trainings if one.state is State.FINISHED}
