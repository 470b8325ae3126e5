"""A blend before it is kept: base, plain sum and blend side by side, from the same noise."""

from collections.abc import Mapping
from dataclasses import replace

from studio.grids.plan import Plan, Spot, members_of, plain
from studio.library import AdapterLibrary
from studio.recipe import MAX_SEED, Recipe

KIND = "blend"
COLUMNS = ("Base", "Plain sum", "Blend")


def plan(
    library: AdapterLibrary,
    recipe: Recipe,
    parts: Mapping[str, float],
    draft: str,
    *,
    seeds: int = 1,
) -> Plan:
    """Lay out a row for each of `seeds` consecutive seeds; the recipe's own mix is not used."""
    entries = tuple(library.find(name) for name in parts)
    numbers = [(recipe.seed + one) % (MAX_SEED + 1) for one in range(seeds)]
    mixes: tuple[Mapping[str, float], ...] = ({}, parts, {draft: 1.0})
    return Plan(
        kind=KIND,
        title=f"A blend of {', '.join(entry.title for entry in entries)}",
        corner=("Seed", "Adapters"),
        rows=tuple(f"Seed {number}" for number in numbers),
        columns=COLUMNS,
        spots=tuple(
            Spot(plain(replace(recipe, seed=number, mix=mix)))
            for number in numbers
            for mix in mixes
        ),
        members=members_of(entries),
    )
