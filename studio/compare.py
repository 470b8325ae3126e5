"""SHiRA beside LoRA: the same words, seed and noise under no adapter, A, B and both."""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from PIL import Image

from shira_diffusion.errors import SettingError, ShiraError, UnknownAdapterError
from studio.engine import Engine
from studio.errors import StoppedError
from studio.library import LORA, TWIN_ENDING, AdapterLibrary
from studio.pictures import new_name, write_png
from studio.recipe import Recipe
from studio.sheet import SheetCell, contact_sheet
from studio.steps import Step

METHODS = ("SHiRA", "LoRA")
COLUMNS = 4
SHEET_FILE = "sheet.png"


@dataclass(frozen=True)
class Choice:
    """One of the two adapters to compare, by the SHiRA adapter's name."""

    name: str
    strength: float = 1.0


@dataclass(frozen=True)
class Cell:
    """One place of the grid: a mix, then its picture, or the problem that stands in its place."""

    method: str
    label: str
    mix: Mapping[str, float]
    problem: str = ""
    picture: Path | None = None


@dataclass(frozen=True)
class Grid:
    """2 methods x 4 mixes in reading order, at one moment of being filled.

    `at` is the index of the cell at work and `step` how far it is; `sheet` is the finished grid as
    one picture.
    """

    recipe: Recipe
    cells: tuple[Cell, ...]
    at: int | None = None
    step: Step | None = None
    sheet: Path | None = None

    @property
    def done(self) -> int:
        """How many cells need no more work."""
        return sum(1 for cell in self.cells if cell.picture or cell.problem)


def plan(library: AdapterLibrary, recipe: Recipe, a: Choice, b: Choice) -> Grid:
    """Lay out the grid of `recipe` (its own mix is not used); a missing twin marks its cells.

    Raises `SettingError` if `a` and `b` are the same, and what `AdapterLibrary.find` raises.
    """
    if a.name == b.name:
        raise SettingError(f"A and B are both {a.name!r}: choose two different adapters.")
    chosen = library.find(a.name), library.find(b.name)
    for entry in chosen:
        if entry.info.method == LORA:
            raise SettingError(
                f"{entry.name!r} is a LoRA: choose a SHiRA adapter, its twin comes with it."
            )
    titles = chosen[0].title, chosen[1].title
    cells = []
    for method, ending in zip(METHODS, ("", TWIN_ENDING), strict=True):
        mix_a, mix_b = {a.name + ending: a.strength}, {b.name + ending: b.strength}
        cells += [
            Cell(method, "Base", {}),
            _known(library, Cell(method, titles[0], mix_a)),
            _known(library, Cell(method, titles[1], mix_b)),
            _known(library, Cell(method, f"{titles[0]} + {titles[1]}", mix_a | mix_b)),
        ]
    return Grid(recipe, tuple(cells))


def _known(library: AdapterLibrary, cell: Cell) -> Cell:
    for name in cell.mix:
        try:
            entry = library.find(name)
        except UnknownAdapterError:
            return replace(cell, problem=f"No LoRA twin here: the library has no {name!r}.")
        except ShiraError as error:
            return replace(cell, problem=str(error))
        if cell.method == METHODS[1] and entry.info.method != LORA:
            return replace(cell, problem=f"No LoRA twin here: {name!r} is not a LoRA.")
    return cell


def run(
    engine: Engine,
    grid: Grid,
    folder: Path,
    *,
    report: Callable[[Grid], None],
    stop: threading.Event | None = None,
) -> Grid:
    """Fill the grid into a new folder below `folder`, cell by cell, each saved when it is finished.

    Cells of the same mix (the base alone is the same for both methods) are made once. A cell that
    fails says why and does not hold up the others. Raises `StoppedError` when asked to stop; what
    was done by then stays saved.
    """
    target = folder / new_name()
    target.mkdir(parents=True)
    for index in range(len(grid.cells)):
        cell = grid.cells[index]  # as it is by now: shared cells are filled ahead of their turn
        if cell.picture or cell.problem:
            continue
        grid = replace(grid, at=index, step=None)
        report(grid)
        filled = _fill(
            engine,
            replace(grid.recipe, mix=cell.mix),
            target / f"{index + 1}.png",
            cell,
            on_step=partial(_report_step, report, grid),
            stop=stop,
        )
        grid = replace(grid, cells=tuple(_share(filled, other) for other in grid.cells))
    write_png(_sheet(grid), target / SHEET_FILE)
    return replace(grid, at=None, step=None, sheet=target / SHEET_FILE)


def _report_step(report: Callable[[Grid], None], grid: Grid, step: Step) -> None:
    report(replace(grid, step=step))


def halted(grid: Grid) -> Grid:
    """The grid as a stop leaves it: nothing at work, the empty places say why."""
    cells = (
        cell if cell.picture or cell.problem else replace(cell, problem="Stopped before its turn.")
        for cell in grid.cells
    )
    return replace(grid, cells=tuple(cells), at=None, step=None)


def _fill(
    engine: Engine,
    recipe: Recipe,
    path: Path,
    cell: Cell,
    *,
    on_step: Callable[[Step], None],
    stop: threading.Event | None,
) -> Cell:
    try:
        sample = engine.generate(recipe, on_step=on_step, stop=stop)
    except StoppedError:
        raise
    except ShiraError as error:
        return replace(cell, problem=str(error))
    write_png(sample.image, path, sample.record)
    return replace(cell, picture=path)


def _share(filled: Cell, other: Cell) -> Cell:
    if other.mix != filled.mix:
        return other
    return replace(other, picture=filled.picture, problem=filled.problem)


def _sheet(grid: Grid) -> Image.Image:
    rows = [grid.cells[start : start + COLUMNS] for start in range(0, len(grid.cells), COLUMNS)]
    caption = f"{grid.recipe.prompt.strip()}   ·   seed {grid.recipe.seed}"
    return contact_sheet(
        caption,
        [[SheetCell(f"{c.method} · {c.label}", c.picture, c.problem) for c in row] for row in rows],
    )
