"""SHiRA beside LoRA: the same words, seed and noise under no adapter, A, B and both."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from shira_diffusion.cards import SPARSE
from shira_diffusion.errors import SettingError, ShiraError, UnknownAdapterError
from studio.grids.grid import Grid
from studio.grids.plan import Plan, Spot, members_of, plain
from studio.judges.judging import CONCEPT
from studio.library import AdapterLibrary, Entry
from studio.recipe import MAX_SEED, Recipe
from studio.twins import TWIN_ENDING, objection

KIND = "compare"
METHODS = ("SHiRA", "LoRA")
ALONE, BOTH = (1, 2), 3
"""The columns of A and of B, and that of both; the first is the base."""
MAX_SEEDS = 8


@dataclass(frozen=True)
class Choice:
    """One of the two adapters to compare, by the SHiRA adapter's name."""

    name: str
    strength: float = 1.0


@dataclass(frozen=True)
class Loss:
    """What an adapter brings, alone and beside the other one: mean scores over `pictures` seeds."""

    method: str
    kind: str
    wanted: str
    single: float
    joint: float
    pictures: int

    @property
    def lost(self) -> float:
        """Single minus joint: above 0 the other adapter takes something away."""
        return self.single - self.joint


def plan(library: AdapterLibrary, recipe: Recipe, a: Choice, b: Choice, *, seeds: int = 1) -> Plan:
    """Lay out the grid of `recipe` (its own mix is not used); a missing twin marks its cells.

    Every method has one row for each of `seeds` consecutive seeds. Raises `SettingError` if `a`
    and `b` are the same, and what `AdapterLibrary.find` raises.
    """
    if a.name == b.name:
        raise SettingError(f"A and B are both {a.name!r}: choose two different adapters.")
    if not 1 <= seeds <= MAX_SEEDS:
        raise SettingError(f"The number of seeds has to be from 1 to {MAX_SEEDS}, not {seeds}.")
    chosen = library.find(a.name), library.find(b.name)
    for entry in chosen:
        if entry.info.method not in SPARSE:
            raise SettingError(
                f"{entry.name!r} is no SHiRA adapter but made by the method "
                f"{entry.info.method!r}: choose one that is, its LoRA twin comes with it."
            )
    titles = chosen[0].label, chosen[1].label
    rows, spots, used = [], [], {entry.name: entry for entry in chosen}
    for method, ending in zip(METHODS, ("", TWIN_ENDING), strict=True):
        one, two = {a.name + ending: a.strength}, {b.name + ending: b.strength}
        for seed in range(recipe.seed, recipe.seed + seeds):
            rows.append(f"{method} · seed {seed % (MAX_SEED + 1)}" if seeds > 1 else method)
            seeded = replace(recipe, seed=seed % (MAX_SEED + 1))
            spots += [_spot(library, seeded, method, mix) for mix in ({}, one, two, one | two)]
        used |= {entry.name: entry for entry in _found(library, (*one, *two))}
    return Plan(
        kind=KIND,
        title=f"{titles[0]} and {titles[1]}: SHiRA beside LoRA",
        corner=("Method", "Adapters"),
        rows=tuple(rows),
        columns=("Base", *titles, f"{titles[0]} + {titles[1]}"),
        spots=tuple(spots),
        members=members_of(tuple(used.values())),
    )


def losses(grid: Grid) -> tuple[Loss, ...]:
    """Concept and style loss of either adapter by each method, as far as they have been judged."""
    found = []
    for name, column in zip(_pair(grid), ALONE, strict=True):
        for kind, wanted in _labels(grid, name, column):
            for method in METHODS:
                loss = _loss(grid, method, column, kind, wanted)
                found += [loss] if loss else []
    return tuple(sorted(found, key=lambda one: one.kind != CONCEPT))


def _loss(grid: Grid, method: str, column: int, kind: str, wanted: str) -> Loss | None:
    pairs = []
    for row, title in enumerate(grid.plan.rows):
        start = row * len(grid.plan.columns)
        single = _value(grid, start + column, kind, wanted)
        joint = _value(grid, start + BOTH, kind, wanted)
        if title.split(" · ")[0] == method and single is not None and joint is not None:
            pairs.append((single, joint))
    if not pairs:
        return None
    single, joint = (sum(values) / len(pairs) for values in zip(*pairs, strict=True))
    return Loss(method, kind, wanted, single, joint, len(pairs))


def _value(grid: Grid, index: int, kind: str, wanted: str) -> float | None:
    scores = {(one.kind, one.wanted): one.value for one in grid.cells[index].scores}
    return scores.get((kind, wanted))


def _pair(grid: Grid) -> tuple[str, str]:
    """The names of A and B, from the first row."""
    a, b = (next(iter(grid.plan.spots[column].recipe.mix), "") for column in ALONE)
    return a, b


def _labels(grid: Grid, name: str, column: int) -> list[tuple[str, str]]:
    """What the adapter `name` brings among what its pictures were judged by."""
    hints = next((one.hints for one in grid.plan.members if one.name == name), ())
    judged = (cell.scores for cell in grid.cells[column :: len(grid.plan.columns)])
    scores = {(one.kind, one.wanted) for scores in judged for one in scores}
    return [(kind, wanted) for kind, wanted in sorted(scores) if wanted in hints]


def _spot(library: AdapterLibrary, recipe: Recipe, method: str, mix: Mapping[str, float]) -> Spot:
    return Spot(plain(replace(recipe, mix=mix)), problem=_problem(library, method, mix))


def _problem(library: AdapterLibrary, method: str, names: Mapping[str, float]) -> str:
    for name in names:
        try:
            entry = library.find(name)
        except UnknownAdapterError:
            return f"No LoRA twin here: the library has no {name!r}."
        except ShiraError as error:
            return str(error)
        if method == METHODS[1]:
            sparse = library.find(name.removesuffix(TWIN_ENDING))
            reason = objection(sparse.info, entry.info)
            if reason:
                return f"No LoRA twin here: {name!r} {reason}."
    return ""


def _found(library: AdapterLibrary, names: Sequence[str]) -> list[Entry]:
    return [entry for entry in library.usable if entry.name in names]
