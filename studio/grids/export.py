"""A finished or unfinished grid as one picture and as one page that works from disk."""

import base64
import io
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader
from PIL import Image

from studio.grids.grid import Cell, Grid
from studio.grids.sheet import SheetCell, contact_sheet
from studio.grids.wording import (
    caption,
    cell_name,
    headline,
    score_words,
    scores_told,
    seen_words,
    wanted_words,
)
from studio.judges.judging import Score
from studio.pictures import write_png, write_text

SHEET_FILE, PAGE_FILE = "grid.png", "grid.html"
KEPT_SIDE = 512
"""Pictures up to this size (pixels) stay PNG files as they are; larger ones become WebP."""
_QUALITY = 88


@dataclass(frozen=True)
class Export:
    """Both files of a grid."""

    sheet: Path
    page: Path


def export(grid: Grid) -> Export:
    """Write both into the grid's folder, in place of older ones."""
    made = Export(grid.folder / SHEET_FILE, grid.folder / PAGE_FILE)
    write_png(sheet(grid), made.sheet)
    write_text(page(grid), made.page)
    return made


def exported(grid: Grid) -> Export | None:
    """The files that `export` wrote, if it did."""
    made = Export(grid.folder / SHEET_FILE, grid.folder / PAGE_FILE)
    return made if made.sheet.is_file() and made.page.is_file() else None


def sheet(grid: Grid) -> Image.Image:
    """The grid as one picture."""
    width = len(grid.plan.columns)
    cells = [
        SheetCell(cell_name(grid, i), cell.picture, _words(cell), score_words(cell.scores))
        for i, cell in enumerate(grid.cells)
    ]
    rows = [cells[start : start + width] for start in range(0, len(cells), width)]
    return contact_sheet(caption(grid), rows, headline(grid))


def page(grid: Grid) -> str:
    """The grid as HTML that asks for nothing outside itself; every text is escaped."""
    loader = FileSystemLoader(Path(__file__).parent.parent / "static")
    template = Environment(loader=loader, autoescape=True).get_template("grid.html.j2")
    width = len(grid.plan.columns)
    cells = [_Shown(cell, cell_name(grid, index)) for index, cell in enumerate(grid.cells)]
    rows = [cells[start : start + width] for start in range(0, len(cells), width)]
    return template.render(
        plan=grid.plan,
        caption=caption(grid),
        rows=list(zip(grid.plan.rows, rows, strict=True)),
        headline=headline(grid),
        scores_told=scores_told(grid),
        settings=_settings(grid),
    )


@dataclass(frozen=True)
class _Shown:
    """A cell in the template's terms."""

    cell: Cell
    name: str

    @property
    def source(self) -> str:
        return _data_uri(self.cell.picture) if self.cell.picture else ""

    @property
    def words(self) -> str:
        return _words(self.cell)

    @property
    def scores(self) -> list[tuple[Score, str, str]]:
        return [(score, wanted_words(score), seen_words(score)) for score in self.cell.scores]


def _words(cell: Cell) -> str:
    return "" if cell.picture else cell.problem or "Not made yet."


def _data_uri(path: Path) -> str:
    with Image.open(path) as image:
        if max(image.size) <= KEPT_SIDE:
            kind, data = "png", path.read_bytes()
        else:
            file = io.BytesIO()
            image.convert("RGB").save(file, format="WEBP", quality=_QUALITY)
            kind, data = "webp", file.getvalue()
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"


def _settings(grid: Grid) -> list[tuple[str, str]]:
    """The settings that all pictures share."""
    recipes = [spot.recipe for spot in grid.plan.spots]
    read = {
        "Prompt": {one.prompt.strip() for one in recipes},
        "Negative prompt": {one.negative_prompt.strip() for one in recipes},
        "Steps": {str(one.steps) for one in recipes},
        "Guidance": {f"{one.guidance:g}" for one in recipes},
        "Seed": {str(one.seed) for one in recipes},
        "Size": {f"{one.width} × {one.height} px" for one in recipes},
    }
    shared = [(name, next(iter(values))) for name, values in read.items() if len(values) == 1]
    files = [("Adapter", f"{name} (file {mark[:12]})") for name, mark in grid.plan.files]
    return [(name, value) for name, value in shared if value] + files
