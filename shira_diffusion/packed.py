"""An adapter in one piece: two vectors, whatever the number of weights that it changes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from shira_diffusion.delta import SparseDelta, bounds


@dataclass(frozen=True, eq=False)
class Packed:
    """The changes of several weights, one weight after another in the order of `slots`.

    `slots` are sorted names, `counts` how many entries each has; `indices` (n,) int32 or int64
    point into each weight's own `flatten()`, `values` (n,) fp16, bf16 or fp32. `peak` is the
    largest absolute value.
    """

    slots: tuple[str, ...]
    counts: tuple[int, ...]
    indices: Tensor
    values: Tensor
    peak: float

    @classmethod
    def of(cls, deltas: Mapping[str, SparseDelta]) -> Packed:
        """A copy of `deltas` on the CPU; values of several dtypes become the one that holds all."""
        slots = tuple(sorted(deltas))
        indices = torch.cat(
            [torch.empty(0, dtype=torch.int32)] + [deltas[s].indices.cpu() for s in slots]
        )
        values = [deltas[slot].values.detach().cpu() for slot in slots]
        joined = torch.cat(values) if values else torch.empty(0)
        counts = tuple(deltas[slot].nnz for slot in slots)
        return cls(slots, counts, indices, joined, peak(joined))

    @property
    def nbytes(self) -> int:
        """How much memory it holds."""
        return self.indices.nbytes + self.values.nbytes

    def to(self, device: torch.device, *, non_blocking: bool = False) -> Packed:
        """The same on another device."""
        indices = self.indices.to(device, non_blocking=non_blocking)
        return replace(
            self, indices=indices, values=self.values.to(device, non_blocking=non_blocking)
        )

    def pinned(self) -> Packed:
        """The same in page-locked memory of the host, from which a GPU copies at full speed."""
        return replace(self, indices=self.indices.pin_memory(), values=self.values.pin_memory())

    def over(self, slots: Sequence[str], device: torch.device) -> Packed:
        """Its part that lies in `slots` (sorted), with a count for each of them, on `device`."""
        own = dict(zip(self.slots, self.counts, strict=True))
        counts = tuple(own.get(slot, 0) for slot in slots)
        if sum(counts) == sum(self.counts):
            return replace(self, slots=tuple(slots), counts=counts).to(device)
        wanted = set(slots)
        kept = [slot in wanted for slot in self.slots]
        indices, values = (
            torch.cat(
                [part for part, keep in zip(flat.split(self.counts), kept, strict=True) if keep]
            )
            if any(kept)
            else flat[:0]
            for flat in (self.indices, self.values)
        )
        return replace(self, slots=tuple(slots), counts=counts, indices=indices, values=values).to(
            device
        )


def peak(values: Tensor) -> float:
    """The largest absolute value, infinite where there is a NaN, 0 where there is nothing."""
    low, high = bounds(values)
    return math.inf if math.isnan(low) else max(-low, high)
