"""A grid of pictures as a folder: its plan, and every cell saved as soon as it is finished.

`plan.json` says what stands where. A cell's files are named by the hash of its recipe: equal cells
share one picture, and what is there is never made again, whatever stopped the work in between.
"""

import json
import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from PIL import Image

from shira_diffusion.errors import ShiraError
from studio.engine import Engine, Sample
from studio.errors import StoppedError
from studio.grids.plan import Plan, Spot, read_plan, write_plan
from studio.judges.judging import Judge, Score, subject_of
from studio.pictures import write_png, write_text
from studio.steps import Step

CELLS = "cells"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Cell:
    """One place: what to draw there, then its picture and scores, or the problem in their place."""

    spot: Spot
    problem: str = ""
    picture: Path | None = None
    scores: tuple[Score, ...] = ()

    @property
    def settled(self) -> bool:
        """Whether there is nothing to do for it."""
        return bool(self.picture or self.problem)

    @property
    def mix(self) -> Mapping[str, float]:
        """The adapters of this place."""
        return self.spot.recipe.mix


@dataclass(frozen=True)
class Grid:
    """A plan at one moment of being filled, its cells in reading order.

    `at` is the index of the cell at work and `step` how far it is; `paces` are the seconds that
    each picture took that was made since the work was taken up.
    """

    folder: Path
    plan: Plan
    cells: tuple[Cell, ...]
    at: int | None = None
    step: Step | None = None
    paces: tuple[float, ...] = field(default=())

    @property
    def done(self) -> int:
        """How many cells need no more work."""
        return sum(cell.settled for cell in self.cells)

    @property
    def whole(self) -> bool:
        """Whether every cell that can have a picture has one."""
        return all(cell.picture or cell.spot.problem for cell in self.cells)

    @property
    def seconds_left(self) -> float | None:
        """How long the rest takes at the pace so far; None before the first picture."""
        if not self.paces:
            return None
        open_ones = {cell.spot.key for cell in self.cells if not cell.settled}
        begun = self.step.number / self.step.total if self.step else 0.0
        return sum(self.paces) / len(self.paces) * max(len(open_ones) - begun, 0.0)


def begin(plan: Plan, folder: Path) -> Grid:
    """Make the grid's folder, with the plan in it."""
    (folder / CELLS).mkdir(parents=True)
    write_plan(plan, folder)
    return open_grid(folder)


def open_grid(folder: Path) -> Grid:
    """The grid as it lies on disk; raises `GridError` if its plan cannot be read."""
    plan = read_plan(folder)
    return Grid(folder, plan, tuple(_read_cell(folder, spot) for spot in plan.spots))


def fill(
    engine: Engine,
    grid: Grid,
    *,
    report: Callable[[Grid], None],
    judge: Judge | None = None,
    stop: threading.Event | None = None,
) -> Grid:
    """Make every picture that is not there yet; cells that failed before are tried again.

    A cell that fails says why and does not hold up the others. Raises `StoppedError` when asked to
    stop; what was done by then stays saved.
    """
    grid = replace(grid, cells=tuple(map(_cleared, grid.cells)), paces=())
    for index in range(len(grid.cells)):
        cell = grid.cells[index]  # as it is by now: shared cells are filled ahead of their turn
        if cell.problem or (cell.picture and (cell.scores or not judge)):
            continue
        grid = replace(grid, at=index, step=None)
        report(grid)
        began, drawn = time.perf_counter(), cell.picture is None
        filled = _filled(engine, grid, cell, report, judge, stop)
        paces = (*grid.paces, time.perf_counter() - began) if drawn else grid.paces
        cells = tuple(_share(filled, other) for other in grid.cells)
        grid = replace(grid, cells=cells, paces=paces)
    return replace(grid, at=None, step=None)


def _filled(
    engine: Engine,
    grid: Grid,
    cell: Cell,
    report: Callable[[Grid], None],
    judge: Judge | None,
    stop: threading.Event | None,
) -> Cell:
    def on_step(step: Step) -> None:
        report(replace(grid, step=step))

    try:
        if cell.picture is None:
            sample = engine.generate(cell.spot.recipe, on_step=on_step, stop=stop)
            cell = _keep(grid.folder, cell, sample)
        if judge:
            cell = replace(cell, scores=_scores(cell, grid.plan, judge))
            _write_note(grid.folder, cell)
    except StoppedError:
        raise
    except (ShiraError, OSError) as error:
        cell = replace(cell, problem=str(error))
        _write_note(grid.folder, cell)
    except Exception as error:
        # One cell must not end the grid, whatever it raises.
        log.exception("cell %s failed", cell.spot.key)
        words = f"Something unforeseen happened: {type(error).__name__}: {error}"
        cell = replace(cell, problem=words)
        _write_note(grid.folder, cell)
    return cell


def _keep(folder: Path, cell: Cell, sample: Sample) -> Cell:
    path = _picture(folder, cell.spot)
    write_png(sample.image, path, sample.record)
    return replace(cell, picture=path)


def _scores(cell: Cell, plan: Plan, judge: Judge) -> tuple[Score, ...]:
    assert cell.picture is not None
    subject = subject_of(cell.spot.recipe.prompt, plan.members, judge)
    if not subject:
        return ()
    with Image.open(cell.picture) as image:
        return judge.look(image.convert("RGB"), subject)


def _cleared(cell: Cell) -> Cell:
    """The cell without what went wrong when it was tried."""
    return replace(cell, problem=cell.spot.problem)


def _share(filled: Cell, other: Cell) -> Cell:
    if other.spot.problem or other.spot.key != filled.spot.key:
        return other
    return replace(filled, spot=other.spot)


def _picture(folder: Path, spot: Spot) -> Path:
    return folder / CELLS / f"{spot.key}.png"


def _note(folder: Path, spot: Spot) -> Path:
    return folder / CELLS / f"{spot.key}.json"


def _write_note(folder: Path, cell: Cell) -> None:
    """Keep a cell's scores or problem beside its picture."""
    content = {"problem": cell.problem, "scores": [asdict(score) for score in cell.scores]}
    write_text(json.dumps(content, ensure_ascii=False), _note(folder, cell.spot))


def _read_cell(folder: Path, spot: Spot) -> Cell:
    picture = _picture(folder, spot)
    cell = Cell(spot, problem=spot.problem, picture=picture if picture.is_file() else None)
    try:
        note = json.loads(_note(folder, spot).read_text(encoding="utf-8"))
        scores = tuple(Score(**score) for score in note["scores"])
    except (OSError, ValueError, TypeError, KeyError):
        # A note that is not there yet, or not whole, costs a look at the picture and nothing else.
        return cell
    problem = "" if cell.picture else str(note.get("problem", ""))
    return replace(cell, problem=spot.problem or problem, scores=scores)
