"""The folders of grids, by ids that are never paths."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from studio.errors import GridError
from studio.grids import grid as grids
from studio.grids.grid import Grid
from studio.grids.plan import PLAN_FILE, Plan, sealed
from studio.library import AdapterLibrary
from studio.pictures import is_name, made_words, new_name
from studio.shelf.trash import Discarded, Trash


@dataclass(frozen=True)
class GridStore:
    """One folder for each grid below `folder`; a grid's id is its folder's name."""

    folder: Path

    def begin(self, plan: Plan, library: AdapterLibrary) -> str:
        """Make a new grid and return its id; it holds to the adapters as they are now."""
        name = new_name()
        grids.begin(sealed(plan, library), self.folder / name)
        return name

    @cached_property
    def trash(self) -> Trash:
        """The grids that were thrown away."""
        return Trash(self.folder / ".trash")

    def discard(self, name: str) -> Discarded:
        """Throw a grid away; `restore` is the inverse."""
        title = f"{self.open(name).plan.title}, {made_words(name)}"
        return self.trash.discard(self.folder / name, title)

    def restore(self, ticket: str) -> str:
        """Bring back a grid that was thrown away; return its id."""
        name = self.trash.find(ticket).name
        self.trash.restore(ticket, self.folder / name)
        return name

    def open(self, name: str) -> Grid:
        """The grid as it lies on disk; raises `GridError` for any string that is no grid's id."""
        folder = self.folder / name if is_name(name) else None
        if folder is None or not (folder / PLAN_FILE).is_file():
            raise GridError(f"There is no grid {name[:60]!r} any more: it was moved or deleted.")
        return grids.open_grid(folder)

    def recent(self, kinds: tuple[str, ...], limit: int) -> list[tuple[str, Grid]]:
        """The newest grids of these kinds (none: of all), newest first, without broken ones."""
        names = (path.parent.name for path in self.folder.glob(f"*/{PLAN_FILE}"))
        found: list[tuple[str, Grid]] = []
        for name in sorted(filter(is_name, names), reverse=True):
            if len(found) == limit:
                break
            try:
                grid = self.open(name)
            except GridError:
                continue
            if not kinds or grid.plan.kind in kinds:
                found.append((name, grid))
        return found
