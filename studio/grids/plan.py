"""What a grid is to show: rows, columns and a recipe for every place, as a small JSON file."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import MISSING, asdict, dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from shira_diffusion.errors import SettingError, ShiraError
from studio.errors import GridError
from studio.judges.judging import Member
from studio.library import AdapterLibrary, Entry
from studio.newwords import mark_of
from studio.recipe import Recipe
from studio.twins import TWIN_ENDING

PLAN_FILE = "plan.json"
PLAN_VERSION = 1
MAX_CELLS = 144


@dataclass(frozen=True)
class Spot:
    """One place of a grid: its recipe; `problem` says why it cannot be drawn at all."""

    recipe: Recipe
    problem: str = ""

    @cached_property
    def key(self) -> str:
        """The name of its files: the same for equal recipes, whatever settings come to be later."""
        given = asdict(self.recipe)
        for setting in fields(self.recipe):
            made = setting.default_factory
            if given[setting.name] == (setting.default if made is MISSING else made()):
                del given[setting.name]
        text = json.dumps(given, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:24]


@dataclass(frozen=True)
class Plan:
    """A whole grid: `spots` fill `rows` x `columns` in reading order.

    `corner` names what the rows and the columns are; `files` has the mark of each adapter as it
    was when the grid was planned. Raises `SettingError` for a grid that is too large.
    """

    kind: str
    title: str
    corner: tuple[str, str]
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    spots: tuple[Spot, ...]
    members: tuple[Member, ...] = ()
    files: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        require_size(len(self.rows), len(self.columns))
        if len(self.spots) != len(self.rows) * len(self.columns):
            raise GridError("The grid's plan has another number of cells than rows and columns.")

    @property
    def pictures(self) -> int:
        """How many different pictures it needs."""
        return len({spot.key for spot in self.spots if not spot.problem})


def require_size(rows: int, columns: int) -> None:
    """Raise `SettingError` for a grid that has too many cells, or none."""
    if not 1 <= rows * columns <= MAX_CELLS:
        raise SettingError(
            f"The grid would have {rows} x {columns} = {rows * columns} cells; "
            f"it needs at least one and takes at most {MAX_CELLS}. Use fewer values."
        )


def plain(recipe: Recipe) -> Recipe:
    """The recipe without adapters at strength 0, which change nothing."""
    return replace(recipe, mix={name: one for name, one in recipe.mix.items() if one})


def members_of(entries: Sequence[Entry]) -> tuple[Member, ...]:
    """The adapters as a judge knows them: by their names and those of their training data."""
    return tuple(
        Member(
            entry.name,
            entry.info.trigger_words,
            (entry.name.removesuffix(TWIN_ENDING), entry.info.training.get("data", "")),
        )
        for entry in entries
    )


def sealed(plan: Plan, library: AdapterLibrary) -> Plan:
    """The plan with the mark of each adapter, so that a change does not go unnoticed."""
    used = (spot.recipe.mix for spot in plan.spots if not spot.problem)
    names = dict.fromkeys(name for mix in used for name in mix)
    return replace(plan, files=tuple((name, mark_of(library.find(name))) for name in names))


def require_unchanged(plan: Plan, library: AdapterLibrary) -> None:
    """Raise `GridError` if an adapter is another one than when the grid was planned."""
    for name, mark in plan.files:
        try:
            same = mark_of(library.find(name)) == mark
        except (ShiraError, OSError) as error:
            raise GridError(f"This grid cannot go on: {error}") from error
        if not same:
            raise GridError(
                f"The adapter {name!r} has changed since this grid was begun; "
                "its new pictures would not belong with the old ones. Start a new grid."
            )


def write_plan(plan: Plan, folder: Path) -> None:
    """Write the plan into a grid's folder."""
    text = json.dumps({"version": PLAN_VERSION, **asdict(plan)}, ensure_ascii=False, indent=1)
    (folder / PLAN_FILE).write_text(text, encoding="utf-8")


def read_plan(folder: Path) -> Plan:
    """Read what `write_plan` wrote; raises `GridError` for anything else."""
    try:
        content = json.loads((folder / PLAN_FILE).read_text(encoding="utf-8"))
        if content.pop("version") != PLAN_VERSION:
            raise GridError("This grid was made by another version of the studio.")
        return _plan(content)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, SettingError) as error:
        raise GridError(f"The plan of this grid cannot be read: {error}") from error


def _plan(content: dict[str, Any]) -> Plan:
    spots = (Spot(Recipe(**spot["recipe"]), spot["problem"]) for spot in content.pop("spots"))
    members = (
        Member(one["name"], tuple(one["triggers"]), tuple(one["hints"]))
        for one in content.pop("members")
    )
    files = ((str(name), str(mark)) for name, mark in content.pop("files"))
    row_title, column_title = content.pop("corner")
    return Plan(
        kind=str(content["kind"]),
        title=str(content["title"]),
        corner=(str(row_title), str(column_title)),
        rows=tuple(map(str, content["rows"])),
        columns=tuple(map(str, content["columns"])),
        spots=tuple(spots),
        members=tuple(members),
        files=tuple(files),
    )
