"""Where the hot path works: chosen entries of several live weights, in one flat order."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from shira_diffusion.errors import MismatchError
from shira_diffusion.whole import Whole

_DTYPE = operator.attrgetter("dtype")


@dataclass(frozen=True, eq=False)
class Places:
    """Entries of a list of weights, weight after weight.

    `indices` (n,) int32 or int64 point into each weight's own `flatten()` and are unique within
    it; `counts` says how many of them each weight has, 0 included.
    """

    indices: Tensor
    counts: tuple[int, ...]

    @classmethod
    def join(cls, parts: Sequence[Tensor]) -> Places:
        """From one index vector for each weight; int64 if one of them is."""
        return cls(torch.cat(list(parts)), tuple(part.numel() for part in parts))

    def split(self, flat: Tensor) -> tuple[Tensor, ...]:
        """The part of a flat vector (n,) that belongs to each weight, as views."""
        return flat.split(self.counts)

    @cached_property
    def parts(self) -> tuple[Tensor, ...]:
        """The indices of each weight, as views."""
        return self.split(self.indices)

    @cached_property
    def programs(self) -> Tensor:
        """Which weight and entries each program of a kernel works on, see `triton_scatter`."""
        from shira_diffusion.triton_scatter import programs

        return programs(self.counts, self.indices.device)


@dataclass(frozen=True, eq=False)
class Step:
    """Entries at `places` that hold `expected` (n,) and shall hold `values` (n,).

    `whole` are other weights of the table, which change in every entry.
    """

    places: Places
    expected: Tensor
    values: Tensor
    whole: Whole | None = None

    def reversed(self) -> Step:
        """The step back."""
        whole = None if self.whole is None else self.whole.reversed()
        return Step(self.places, self.values, self.expected, whole)

    def then(self, new: Step) -> Step:
        """One step from these values to those of `new`, which is at the same places."""
        whole = None
        if self.whole is not None and new.whole is not None:
            whole = Whole(self.whole.values, new.whole.values)
        return Step(new.places, self.values, new.values, whole)


class WeightTable:
    """Live weights of one device and dtype, in the order in which `Places` count them.

    It remembers where their memory lies, but does not keep that memory alive: ask `is_current`
    before each use, and make a new table once it says no. Raises `MismatchError` for weights of
    several devices or dtypes.
    """

    def __init__(self, weights: Sequence[Tensor]):
        kinds = {(weight.device, weight.dtype) for weight in weights}
        if len(kinds) != 1:
            found = sorted(f"{dtype} on {device}" for device, dtype in kinds)
            raise MismatchError(f"a table holds weights of one device and dtype, got {found}")
        self.device, self.dtype = kinds.pop()
        self.weights = tuple(weights)
        self._memory, self._contiguous = self._where(), self._layout()

    @property
    def is_flat(self) -> bool:
        """Whether every weight lies in one piece, row after row."""
        return all(self._contiguous)

    @cached_property
    def pointers(self) -> Tensor:
        """The weights' addresses (number of weights,) int64, on their device."""
        addresses, _ = self._memory
        return torch.tensor(addresses, dtype=torch.int64).to(self.device)

    def is_current(self) -> bool:
        """Whether the weights' memory is where it was: not moved, cast or laid out anew."""
        return self.is_in_place() and self.is_laid_out()

    def is_in_place(self) -> bool:
        """Whether the weights' memory is where it was and holds the same dtype: safe to write."""
        return self._where() == self._memory

    def is_laid_out(self) -> bool:
        """Whether the entries have the same order in memory."""
        return self._layout() == self._contiguous

    def _where(self) -> tuple[list[int], list[torch.dtype]]:
        # Maps in C cost a third of a loop in Python; there are hundreds of weights.
        return list(map(Tensor.data_ptr, self.weights)), list(map(_DTYPE, self.weights))

    def _layout(self) -> list[bool]:
        return list(map(Tensor.is_contiguous, self.weights))
