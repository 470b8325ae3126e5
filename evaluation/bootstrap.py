"""Means of records with 95 % intervals over training seeds, seeds of noise and prompts.

The three are crossed: one training seed shows in all pairs, one noise in all prompts. So each is
drawn anew with replacement, independently of the others, and a picture counts as often as its
training seed times its noise times its prompt was drawn (the pigeonhole bootstrap,
https://doi.org/10.1214/07-AOAS122, which errs on the wide side). Prompts are drawn among those of
the same adapters. All means are resampled by the same draws, so differences and ratios of methods
that were asked the same are paired.
"""

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Record = Mapping[str, Any]
Floats = NDArray[np.float64]
Read = Callable[[Record], float | None]
"""What is read from a picture, None if nothing."""

DRAWS = 4000
_SEED = 20261125


@dataclass(frozen=True, eq=False)
class Estimate:
    """A figure and what it came to in every resampling: (DRAWS,)."""

    value: float
    draws: Floats

    @property
    def low(self) -> float:
        """The lower end of the 95 % interval."""
        return self._percentile(2.5)

    @property
    def high(self) -> float:
        """The upper end of the 95 % interval."""
        return self._percentile(97.5)

    def _percentile(self, share: float) -> float:
        finite = self.draws[np.isfinite(self.draws)]
        return float(np.percentile(finite, share)) if finite.size else float("nan")

    def __add__(self, other: "Estimate") -> "Estimate":
        return Estimate(self.value + other.value, self.draws + other.draws)

    def __sub__(self, other: "Estimate") -> "Estimate":
        return Estimate(self.value - other.value, self.draws - other.draws)

    def __truediv__(self, other: "Estimate | float") -> "Estimate":
        below = other if isinstance(other, Estimate) else Estimate(other, np.array(other))
        with np.errstate(divide="ignore", invalid="ignore"):
            value = float(np.divide(self.value, below.value))
            return Estimate(value, np.divide(self.draws, below.draws))


def estimate(records: Iterable[Record], read: Read) -> Estimate | None:
    """Return the mean of what is read from the records, None when there is nothing to read."""
    rows = [(record, value) for record in records if (value := read(record)) is not None]
    if not rows:
        return None
    values = np.array([value for _, value in rows])
    weights = np.ones((DRAWS, len(rows)))
    for name, column in (("training", "training_seed"), ("noise", "seed")):
        weights *= _counts(name, [record[column] for record, _ in rows])
    weights *= _prompt_counts([(tuple(r["adapters"]), r["task"], r["prompt"]) for r, _ in rows])
    with np.errstate(divide="ignore", invalid="ignore"):
        draws = (weights @ values) / weights.sum(axis=1)
    return Estimate(float(values.mean()), draws)


def _counts(name: str, labels: Sequence[Hashable]) -> Floats:
    """How often each row's label was drawn, (DRAWS, rows); the same for the same set of labels."""
    known = {label: place for place, label in enumerate(sorted(set(labels), key=repr))}
    drawn = _multinomial(name, len(known))
    return drawn[:, [known[label] for label in labels]]


def _prompt_counts(labels: Sequence[tuple[Hashable, ...]]) -> Floats:
    """As `_counts` for prompts, which are drawn among those of the same adapters and task."""
    units: dict[tuple[Hashable, ...], set[Hashable]] = {}
    for label in labels:
        units.setdefault(label[:-1], set()).add(label[-1])
    columns: dict[tuple[Hashable, ...], Floats] = {}
    for unit, prompts in units.items():
        drawn = _multinomial(repr(unit), len(prompts))
        for place, prompt in enumerate(sorted(prompts, key=repr)):
            columns[*unit, prompt] = drawn[:, place]
    return np.stack([columns[label] for label in labels], axis=1)


def _multinomial(name: str, count: int) -> Floats:
    """Draw `count` of as many things with replacement, DRAWS times; `name` seeds the draws."""
    generator = np.random.default_rng([_SEED, *name.encode()])
    return generator.multinomial(count, np.full(count, 1 / count), size=DRAWS).astype(np.float64)
