"""Means of records with 95 % bootstrap intervals over training seeds, prompts and noise.

They are resampled as they are nested: training seeds first, in each of those drawn the prompts of
every mix of adapters, and in each of these the seeds of noise, all with replacement
(https://doi.org/10.1017/CBO9780511802843, section 3.8). The mixes themselves are not resampled.
Training seeds are drawn alike for all figures, prompts and noise alike for all methods that were
asked the same, so ratios and differences are paired.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Record = Mapping[str, Any]
Floats = NDArray[np.float64]
Places = NDArray[np.intp]
Read = Callable[[Record], float | None]
"""What is read from a picture, None if nothing."""
Label = tuple[int, str, str]
"""A picture's training seed, its mix of adapters and task, and its prompt."""

DRAWS = 2000
_SEED = 20261125


@dataclass(frozen=True, eq=False)
class Estimate:
    """A figure and what it came to in every resampling: (DRAWS,)."""

    value: float
    draws: Floats

    @property
    def low(self) -> float:
        """The lower end of the 95 % interval."""
        # A value that was drawn: a ratio over nothing is infinite, and none lies beside that.
        return float(np.nanpercentile(self.draws, 2.5, method="lower"))

    @property
    def high(self) -> float:
        """The upper end of the 95 % interval."""
        return float(np.nanpercentile(self.draws, 97.5, method="higher"))

    def __add__(self, other: "Estimate") -> "Estimate":
        return Estimate(self.value + other.value, self.draws + other.draws)

    def __sub__(self, other: "Estimate") -> "Estimate":
        return Estimate(self.value - other.value, self.draws - other.draws)

    def __truediv__(self, other: "Estimate | float") -> "Estimate":
        value, draws = (other.value, other.draws) if isinstance(other, Estimate) else (other, other)
        with np.errstate(divide="ignore", invalid="ignore"):
            return Estimate(self.value / value, np.divide(self.draws, draws))


@dataclass(frozen=True, eq=False)
class _Picks:
    """What some of the resamplings, `draws` (m,), took of one training seed: `rows` (m, n)."""

    draws: Places
    rows: Places


def estimate(records: Iterable[Record], read: Read) -> Estimate | None:
    """Return the mean of what is read from the records, None when there is nothing to read."""
    rows = [(record, value) for record in records if (value := read(record)) is not None]
    if not rows:
        return None
    # In one order, so that methods that were asked the same are resampled alike.
    rows.sort(key=lambda row: (_label(row[0]), row[0]["seed"]))
    values = np.array([value for _, value in rows], dtype=np.float64)
    sums, counts = np.zeros(DRAWS), np.zeros(DRAWS)
    for picks in _picked(tuple(_label(record) for record, _ in rows)):
        sums[picks.draws] += values[picks.rows].sum(axis=1)
        counts[picks.draws] += picks.rows.shape[1]
    return Estimate(float(values.mean()), sums / counts)


def _label(record: Record) -> Label:
    mix = f"{'+'.join(record['adapters'])}/{record['task']}"
    return int(record["training_seed"]), mix, str(record["prompt"])


@lru_cache(maxsize=16)
def _picked(labels: tuple[Label, ...]) -> tuple[_Picks, ...]:
    """Resample pictures, given by their labels; the same for the same labels."""
    tree: dict[int, dict[str, dict[str, list[int]]]] = {}
    for row, (training_seed, mix, prompt) in enumerate(labels):
        tree.setdefault(training_seed, {}).setdefault(mix, {}).setdefault(prompt, []).append(row)
    known = sorted(tree)
    digest = hashlib.sha256(repr(labels).encode()).digest()
    generator = np.random.default_rng([_SEED, *digest])
    drawn = np.random.default_rng(_SEED).integers(len(known), size=(len(known), DRAWS))
    picks = []
    for turn in drawn:
        for place, training_seed in enumerate(known):
            draws = np.flatnonzero(turn == place)
            parts = [
                _of_mix(list(prompts.values()), len(draws), generator)
                for prompts in tree[training_seed].values()
            ]
            picks.append(_Picks(draws, np.concatenate(parts, axis=1)))
    return tuple(picks)


def _of_mix(prompts: Sequence[Sequence[int]], count: int, generator: np.random.Generator) -> Places:
    """Resample a mix's prompts and of each the rows of its seeds, `count` times: (count, rows)."""
    sizes = np.array([len(rows) for rows in prompts])
    table = np.zeros((len(prompts), sizes.max()), dtype=np.intp)
    for place, rows in enumerate(prompts):
        table[place, : len(rows)] = rows
    chosen = generator.integers(len(prompts), size=(count, len(prompts)))
    shares = generator.random((*chosen.shape, table.shape[1]))
    seeds = (shares * sizes[chosen][..., None]).astype(np.intp)
    return table[chosen[..., None], seeds].reshape(count, -1)
