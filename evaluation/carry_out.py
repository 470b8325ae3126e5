"""Carries out a plan: trains what is missing, draws what has no record yet, appends."""

import math
import time
from collections.abc import Callable
from concurrent.futures import ALL_COMPLETED, FIRST_COMPLETED, Future, wait
from pathlib import Path
from typing import Any

from evaluation.board import Board
from evaluation.errors import EvaluationError
from evaluation.pieces import Piece
from evaluation.place import Place
from evaluation.plan import Plan
from evaluation.pool import Crew
from evaluation.progress import Progress

WORK = Path("runs/evaluation")


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
    the time that is left, as far as that is known. What fails holds up nothing but what needs it;
    the next call tries it again. What was at work in a process that died is begun anew.

    Raises `EvaluationError` when processes only die; what was at work besides is written down then.
    """
    board = Board.of(plan, place)
    deadline = time.monotonic() + until
    at_work: dict[Future[Any], tuple[Piece, float]] = {}
    report(board.progress)

    def settle(when: str) -> None:
        for future in wait(at_work, return_when=when).done:
            piece, started = at_work.pop(future)
            board.settle(piece, future, time.monotonic() - started)
        report(board.progress)

    while True:
        while len(at_work) < crew.size and (piece := board.take(deadline - time.monotonic())):
            started = time.monotonic()
            try:
                at_work[crew.submit(piece)] = (piece, started)
            except EvaluationError:
                settle(ALL_COMPLETED)
                raise
        if not at_work:
            return board.progress
        settle(FIRST_COMPLETED)
