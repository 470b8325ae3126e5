"""The figures of every method: alone, together, what is lost, what else changes, what it costs."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

from evaluation.bootstrap import Estimate, Read, Record, estimate
from evaluation.drawings import BASE, OWN, SAME, UNRELATED
from evaluation.errors import EvaluationError
from evaluation.plan import CONCEPT, KINDS, STYLE

_PLACE = ("method", "training_seed", "strength", "task", "prompt", "seed")


@dataclass(frozen=True)
class Row:
    """One method at one strength with `active` adapters at once.

    Its figures, by name, as far as pictures for them were drawn: `single` and `joint` say how often
    the judge sees what the adapters bring, alone on their own prompts and together; styles and
    concepts count the same, and have figures of their own (`single_style` ...). `kept` is joint
    over single, `loss` single minus joint. `there` is as single, but on the very prompts and noise
    of the pairs. `both` is how often concept and style are in one picture. `unrelated` is how often
    concept and style are what unrelated prompts ask for, with one adapter on. `diversity` is the
    mean distance of pictures of one prompt, one adapter on its own prompts.
    """

    method: str
    recipe: str
    strength: float
    active: int
    pictures: int
    figures: Mapping[str, Estimate]


def rows(records: Sequence[Record]) -> list[Row]:
    """Return a row for every method, strength and number of adapters, in the records' order.

    Raises `EvaluationError` for two different pictures in one place.
    """
    _check_places(records)
    alone: dict[tuple[str, float], list[Record]] = defaultdict(list)
    together: dict[tuple[str, str, float, int], list[Record]] = defaultdict(list)
    for record in records:
        method, recipe, strength = record["method"], record["recipe"], record["strength"]
        active = len(record["adapters"])
        if method == BASE:
            continue
        if active == 1:
            alone[recipe, strength].append(record)
        else:
            together[method, recipe, strength, active].append(record)
    single = {place: _single(found) for place, found in alone.items()}
    made = []
    for (method, recipe, strength, active), found in together.items():
        figures = {**single.get((recipe, strength), {}), **_joint(found)}
        if "single" in figures and "joint" in figures:
            figures["loss"] = figures["single"] - figures["joint"]
            if figures["single"].value > 0:
                figures["kept"] = figures["joint"] / figures["single"]
        made.append(Row(method, recipe, strength, active, len(found), figures))
    return made


def unrelated(records: Iterable[Record]) -> Estimate | None:
    """Return how often concept and style are what unrelated prompts ask for."""
    return estimate((one for one in records if one["task"] == UNRELATED), as_asked)


def _check_places(records: Sequence[Record]) -> None:
    keys: dict[tuple[Any, ...], str] = {}
    for record in records:
        place = (*(record[name] for name in _PLACE), tuple(record["adapters"]))
        if keys.setdefault(place, record["key"]) != record["key"]:
            raise EvaluationError(
                f"The records hold two pictures of {record['method']!r} for {record['prompt']!r}, "
                "made with different settings. Keep such runs apart: give each an --out of its own."
            )


def _single(records: Sequence[Record]) -> dict[str, Estimate]:
    own = [record for record in records if record["task"] == OWN]
    there = [record for record in records if record["task"] == SAME]
    return _known(
        {
            **_by_kind("single", own),
            **_by_kind("there", there),
            "unrelated": unrelated(records),
            "diversity": estimate(own, scored("diversity")),
        }
    )


def _joint(records: Sequence[Record]) -> dict[str, Estimate]:
    return _known({**_by_kind("joint", records), "both": estimate(records, both)})


def _by_kind(name: str, records: Sequence[Record]) -> dict[str, Estimate | None]:
    """Estimate what is brought by styles, by concepts and, as the mean of these two, by all."""
    style, concept = (estimate(records, brought(kind)) for kind in (STYLE, CONCEPT))
    every = (style + concept) / 2.0 if style and concept else None
    return {name: every, f"{name}_style": style, f"{name}_concept": concept}


def _known(figures: Mapping[str, Estimate | None]) -> dict[str, Estimate]:
    return {name: figure for name, figure in figures.items() if figure is not None}


@dataclass(frozen=True)
class Cost:
    """What a recipe's adapters hold: trained values and bytes on disk."""

    values: float
    size: float


def brought(kind: str) -> Read:
    """Read whether the judge sees what the active adapter of a kind was asked for."""
    return lambda record: record["scores"].get(kind) if record[kind] in record["adapters"] else None


def scored(name: str) -> Read:
    """Read one score."""
    return lambda record: record["scores"].get(name)


def both(record: Record) -> float | None:
    """Read whether the judge sees concept and style in one picture."""
    scores = record["scores"]
    return scores[CONCEPT] * scores[STYLE] if scores.keys() >= set(KINDS) else None


def as_asked(record: Record) -> float | None:
    """Read the mean of whether the judge sees the concept and whether it sees the style."""
    scores = record["scores"]
    return (scores[CONCEPT] + scores[STYLE]) / 2 if scores.keys() >= set(KINDS) else None


def costs(adapters: Iterable[Mapping[str, Any]]) -> dict[str, Cost]:
    """Return what each recipe costs, mean over its adapters."""
    by_recipe: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for line in adapters:
        by_recipe[line["recipe"]].append(line)
    return {
        recipe: Cost(*(mean(line[key] for line in lines) for key in ("values", "bytes")))
        for recipe, lines in by_recipe.items()
    }
