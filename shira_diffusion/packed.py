"""An adapter in one piece: two vectors, whatever the number of weights that it changes."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from shira_diffusion.adapter import Delta
from shira_diffusion.delta import SparseDelta, bounds, index_dtype
from shira_diffusion.lowrank import LowRankDelta


@dataclass(frozen=True, eq=False)
class Packed:
    """The changes of several weights, one weight after another in the order of `slots`.

    `slots` are sorted names, `counts` how many entries each has; `indices` (n,) int32 or int64
    point into each weight's own `flatten()`, `values` (n,) fp16, bf16 or fp32. `peak` is the
    largest absolute value. The changes of other slots are `factors`, from which they are computed.
    """

    slots: tuple[str, ...]
    counts: tuple[int, ...]
    indices: Tensor
    values: Tensor
    peak: float
    factors: Mapping[str, LowRankDelta] = field(default_factory=dict)

    @classmethod
    def of(cls, deltas: Mapping[str, Delta]) -> Packed:
        """All of `deltas` on the CPU; values of several dtypes become the one that holds all.

        What lies in one piece already, as a native file is read, is not copied.
        """
        entries, factors = {}, {}
        for slot, delta in sorted(deltas.items()):
            if isinstance(delta, SparseDelta):
                entries[slot] = delta
            else:
                factors[slot] = delta.to("cpu")
        nothing = torch.empty(0, dtype=torch.int32)
        indices = _joined([one.indices.cpu() for one in entries.values()]) if entries else nothing
        values = [one.values.detach().cpu() for one in entries.values()]
        joined = _joined(values) if values else torch.empty(0)
        counts = tuple(one.nnz for one in entries.values())
        return cls(tuple(entries), counts, indices, joined, peak(joined), factors)

    @property
    def nbytes(self) -> int:
        """How much memory it holds."""
        factors = sum(one.nbytes for one in self.factors.values())
        return self.indices.nbytes + self.values.nbytes + factors

    @property
    def is_empty(self) -> bool:
        """Whether it changes nothing."""
        return not self.indices.numel() and not self.factors

    def to(self, device: torch.device, *, non_blocking: bool = False) -> Packed:
        """The same on another device."""
        return self._mapped(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pinned(self) -> Packed:
        """The same in page-locked memory of the host, from which a GPU copies at full speed."""
        return self._mapped(Tensor.pin_memory)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Every tensor in it, by a name; `filled` puts others in."""
        factors = {
            f"{field_name}:{slot}": part
            for slot, one in self.factors.items()
            for field_name, part in one.tensors.items()
        }
        return {"indices": self.indices, "values": self.values, **factors}

    def filled(self, tensors: Mapping[str, Tensor]) -> Packed:
        """The same with other tensors, named as `tensors` names them; else `KeyError`."""
        factors = {
            slot: one.with_tensors(
                {field_name: tensors[f"{field_name}:{slot}"] for field_name in one.tensors}
            )
            for slot, one in self.factors.items()
        }
        indices, values = tensors["indices"], tensors["values"]
        return replace(self, indices=indices, values=values, factors=factors)

    def part(self, slot: str, shape: tuple[int, ...]) -> Delta | None:
        """Its change of one weight of `shape`, None where there is none."""
        if slot in self.factors:
            return self.factors[slot]
        number = self.slots.index(slot)
        start, length = sum(self.counts[:number]), self.counts[number]
        indices, values = (one[start : start + length] for one in (self.indices, self.values))
        return (
            SparseDelta(indices.to(index_dtype(math.prod(shape))), values, shape)
            if length
            else None
        )

    def without(self, slots: Collection[str]) -> Packed:
        """Its part outside of `slots`, of which the counts become 0."""
        if not slots:
            return self
        kept = tuple(slot for slot in self.slots if slot not in slots)
        rest = self.over(kept, self.indices.device)
        counts = dict(zip(kept, rest.counts, strict=True))
        return replace(rest, slots=self.slots, counts=tuple(counts.get(s, 0) for s in self.slots))

    def _mapped(self, function: Callable[[Tensor], Tensor]) -> Packed:
        return self.filled({name: function(tensor) for name, tensor in self.tensors.items()})

    def over(self, slots: Sequence[str], device: torch.device) -> Packed:
        """Its part that lies in `slots` (sorted), with a count for each of them, on `device`."""
        own = dict(zip(self.slots, self.counts, strict=True))
        counts = tuple(own.get(slot, 0) for slot in slots)
        wanted = set(slots)
        factors = {slot: one for slot, one in self.factors.items() if slot in wanted}
        if sum(counts) == sum(self.counts):
            return replace(self, slots=tuple(slots), counts=counts, factors=factors).to(device)
        kept = [slot in wanted for slot in self.slots]
        indices, values = (
            torch.cat(
                [part for part, keep in zip(flat.split(self.counts), kept, strict=True) if keep]
            )
            if any(kept)
            else flat[:0]
            for flat in (self.indices, self.values)
        )
        part = Packed(tuple(slots), counts, indices, values, self.peak, factors)
        return part.to(device)


def _joined(parts: Sequence[Tensor]) -> Tensor:
    """All vectors as one: a view where they lie one behind the other, else a copy."""
    first, start = parts[0], parts[0].storage_offset()
    for part in parts:
        # The same memory, dtype and place is more than an equal address of a freed tensor.
        if (
            part.untyped_storage().data_ptr() != first.untyped_storage().data_ptr()
            or part.dtype != first.dtype
            or not part.is_contiguous()
            or part.storage_offset() != start
        ):
            return torch.cat(list(parts))
        start += part.numel()
    return first.as_strided((start - first.storage_offset(),), (1,))


def peak(values: Tensor) -> float:
    """The largest absolute value, infinite where there is a NaN, 0 where there is nothing."""
    low, high = bounds(values)
    return math.inf if math.isnan(low) else max(-low, high)
