"""An X/Y grid: two axes that each change one thing of a picture, from what people type."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from shira_diffusion.errors import SettingError
from studio.grids.plan import Plan, Spot, members_of, plain, require_size
from studio.library import AdapterLibrary, Entry
from studio.recipe import MAX_SEED, Recipe

KIND = "xy"
MAX_VALUES = 24


@dataclass(frozen=True)
class Draft:
    """A picture while axes change it: a recipe and the two adapters with their strengths."""

    recipe: Recipe
    adapters: Mapping[str, str] = field(default_factory=dict)
    """The adapter in the place "A" and that in "B", where there is one."""
    strengths: Mapping[str, float] = field(default_factory=dict)

    def finished(self) -> Recipe:
        """The recipe with the mix that the two places give."""
        mix: dict[str, float] = {}
        for place, name in self.adapters.items():
            if name:
                mix[name] = mix.get(name, 0.0) + self.strengths.get(place, 1.0)
        return plain(replace(self.recipe, mix=mix))


Change = Callable[[Draft], Draft]


@dataclass(frozen=True)
class Value:
    """One step of an axis: its label and what it changes."""

    label: str
    change: Change


@dataclass(frozen=True)
class Axis:
    """What changes along one side of the grid."""

    title: str
    values: tuple[Value, ...]
    late: bool = False
    """Whether it changes what the other axis has put there."""


@dataclass(frozen=True)
class Kind:
    """A thing that can change along an axis: how it is called, what its values look like."""

    name: str
    hint: str
    example: str
    read: Callable[[str], Sequence[Value]]
    adapters: bool = False
    """Whether the values are names of adapters."""
    late: bool = False


NOTHING = Axis("", (Value("", lambda draft: draft),))


def axis(kind: Kind, text: str) -> Axis:
    """Read the values of an axis; raises `SettingError` that names what cannot be read."""
    values = tuple(kind.read(text))
    if not 1 <= len(values) <= MAX_VALUES:
        raise SettingError(
            f"{kind.name} needs 1 to {MAX_VALUES} values, not {len(values)}: {kind.hint}"
        )
    return Axis(kind.name, values, kind.late)


def plan(library: AdapterLibrary, draft: Draft, rows: Axis, columns: Axis) -> Plan:
    """Lay out every combination of the two axes' values.

    Raises `SettingError` for too many cells and for values that a recipe does not take, and what
    `AdapterLibrary.find` raises for an adapter.
    """
    if rows.title and rows.title == columns.title:
        raise SettingError(f"Both axes change {rows.title!r}: choose two different ones.")
    require_size(len(rows.values), len(columns.values))

    def spot(row: Value, column: Value) -> Spot:
        first, second = (column, row) if rows.late else (row, column)
        return Spot(second.change(first.change(draft)).finished())

    spots = tuple(spot(row, column) for row in rows.values for column in columns.values)
    used = tuple(_entries(library, spots).values())
    titles = [one.title for one in (rows, columns) if one.title]
    return Plan(
        kind=KIND,
        title=" by ".join(titles) or "One picture",
        corner=(rows.title, columns.title),
        rows=tuple(value.label for value in rows.values),
        columns=tuple(value.label for value in columns.values),
        spots=spots,
        members=members_of(used),
    )


def _entries(library: AdapterLibrary, spots: Sequence[Spot]) -> dict[str, Entry]:
    names = dict.fromkeys(name for spot in spots for name in spot.recipe.mix)
    return {name: library.find(name) for name in names}


def numbers(text: str, what: str, *, whole: bool = False) -> list[float]:
    """Numbers from "0, 0.5, 1" and ranges as "0:1:0.25" (from, to, step; step 1 if left out)."""
    found: list[float] = []
    for part in filter(None, (part.strip() for part in re.split(r"[,;\n]", text))):
        try:
            found += _ranged(*map(float, part.split(":")))
        except (ValueError, TypeError, OverflowError) as error:
            raise SettingError(f"{part!r} is no number or range for {what}.") from error
    if whole and any(one != int(one) for one in found):
        raise SettingError(f"{what} takes whole numbers only.")
    return list(dict.fromkeys(found))


def _ranged(first: float, last: float | None = None, step: float = 1.0) -> list[float]:
    last = first if last is None else last
    # NaN fails the comparison too.
    if not (step > 0 and 0 <= (last - first) / step <= 1000 and math.isfinite(first)):
        raise ValueError("a range that does not end")
    # Rounding takes off what 0.1 + 0.1 + 0.1 adds to 0.3.
    count = math.floor((last - first) / step + 1e-9) + 1
    return [round(first + index * step, 10) for index in range(count)]


def _strength(*places: str) -> Callable[[str], list[Value]]:
    what = f"The strength of {' and '.join(places)}"

    def change(strength: float) -> Change:
        return lambda draft: replace(
            draft, strengths={**draft.strengths, **dict.fromkeys(places, strength)}
        )

    return lambda text: [Value(f"{one:g}", change(one)) for one in numbers(text, what)]


def _whole(name: str, what: str) -> Callable[[str], list[Value]]:
    return lambda text: [
        Value(f"{int(one)}", _changed(name, int(one))) for one in numbers(text, what, whole=True)
    ]


def _guidance(text: str) -> list[Value]:
    return [Value(f"{one:g}", _changed("guidance", one)) for one in numbers(text, "Guidance")]


def _changed(name: str, value: Any) -> Change:
    """Set one field of the recipe."""
    return lambda draft: replace(draft, recipe=replace(draft.recipe, **{name: value}))


def _lines(text: str) -> list[str]:
    return list(dict.fromkeys(filter(None, (line.strip() for line in text.splitlines()))))


def _prompt(text: str) -> list[Value]:
    return [Value(line, _changed("prompt", line)) for line in _lines(text)]


def _word(text: str) -> list[Value]:
    words = [word.strip() for word in re.split(r"[,\n]", text) if word.strip()]

    def change(word: str) -> Change:
        def swapped(draft: Draft) -> Draft:
            prompt = draft.recipe.prompt
            if words[0] not in prompt:
                raise SettingError(f"The prompt has no {words[0]!r} to replace: {prompt!r}.")
            return _changed("prompt", prompt.replace(words[0], word))(draft)

        return swapped

    return [Value(word, change(word)) for word in dict.fromkeys(words)]


def _adapter(place: str) -> Callable[[str], list[Value]]:
    def change(name: str) -> Change:
        return lambda draft: replace(draft, adapters={**draft.adapters, place: name})

    return lambda text: [
        Value("none" if name == NONE else name, change("" if name == NONE else name))
        for name in _lines(text)
    ]


NONE = "(none)"
"""The value of an adapter axis that leaves the place empty."""

KINDS = {
    kind.name: kind
    for kind in (
        Kind("Strength of A", "numbers, or a range as 0:1:0.25", "0, 0.5, 1", _strength("A")),
        Kind("Strength of B", "numbers, or a range as 0:1:0.25", "0, 0.5, 1", _strength("B")),
        Kind("Strength of A and B", "numbers, or a range", "0.5, 0.75, 1", _strength("A", "B")),
        Kind("Adapter A", "choose adapters", "", _adapter("A"), adapters=True),
        Kind("Adapter B", "choose adapters", "", _adapter("B"), adapters=True),
        Kind(
            "Seed", f"whole numbers from 0 to {MAX_SEED}, or 0:3", "0:3",
            _whole("seed", "The seed"),
        ),
        Kind("Prompt", "one prompt a line", "", _prompt),
        Kind(
            "Words in the prompt", "the words that stand in the prompt, then what to put there",
            "", _word, late=True,
        ),
        Kind("Steps", "whole numbers", "10, 20, 30", _whole("steps", "Steps")),
        Kind("Guidance", "numbers", "2, 4, 6", _guidance),
    )
}  # fmt: skip
"""Everything that an axis can change, by name."""
