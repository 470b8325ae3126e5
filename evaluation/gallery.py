"""The pictures side by side: one line a prompt, one column a method."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from evaluation.bootstrap import Record
from evaluation.drawings import BASE
from evaluation.plan import CONCEPT, STYLE


@dataclass(frozen=True)
class Shown:
    """One picture: its file, whether the judge sees concept and style, and its adapters."""

    file: str
    concept: bool
    style: bool
    adapters: str


@dataclass(frozen=True)
class Line:
    """One prompt and noise, and the picture of each method, None where there is none.

    `disagreement` is how much the methods differ in what is seen, `seen` how much they show.
    """

    prompt: str
    task: str
    seed: int
    shown: Sequence[Shown | None]

    @property
    def seen(self) -> float:
        """The mean share of concept and style that is seen."""
        marks = self._marks
        return sum(marks) / len(marks) if marks else 0.0

    @property
    def disagreement(self) -> float:
        """Between the best and the worst method."""
        marks = self._marks
        return max(marks) - min(marks) if marks else 0.0

    @property
    def _marks(self) -> list[float]:
        return [(one.concept + one.style) / 2 for one in self.shown if one is not None]


@dataclass(frozen=True)
class Gallery:
    """Methods and lines."""

    methods: Sequence[str]
    lines: Sequence[Line]


def gallery(records: Sequence[Record], files: Mapping[str, str]) -> Gallery:
    """Return the records whose picture is there, in their order; the base stands in each line."""
    kept = [record for record in records if record["key"] in files]
    methods = list(dict.fromkeys(_column(record) for record in kept))
    base = {(one["prompt"], one["seed"]): one for one in kept if not one["adapters"]}
    lines: dict[tuple[str, str, int, tuple[str, ...]], dict[str, Shown]] = {}
    for record in kept:
        if record["adapters"]:
            # Bystanders, the third adapter and on, make no other line: the prompt is the same.
            place = record["prompt"], record["task"], record["seed"], tuple(record["adapters"][:2])
            lines.setdefault(place, {})[_column(record)] = _shown(record, files)
    for (prompt, _, seed, _), found in lines.items():
        if (prompt, seed) in base:
            found[BASE] = _shown(base[prompt, seed], files)
    return Gallery(
        methods,
        [Line(*place[:3], [found.get(name) for name in methods]) for place, found in lines.items()],
    )


def _shown(record: Record, files: Mapping[str, str]) -> Shown:
    scores = record["scores"]
    return Shown(
        files[record["key"]],
        scores.get(CONCEPT, 0) > 0,
        scores.get(STYLE, 0) > 0,
        " + ".join(record["adapters"]) or "no adapter",
    )


def _column(record: Record) -> str:
    strength = "" if record["strength"] == 1.0 else f" at {record['strength']:g}"
    active = len(record["adapters"])
    return f"{record['method']}{strength}" + (f", {active} on" if active > 2 else "")
