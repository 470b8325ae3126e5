"""What a set of adapters does to the weights of one table, ready for any strengths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate

import torch
from torch import Tensor

from shira_diffusion.delta import index_dtype
from shira_diffusion.mixture import require_finite, require_in_range
from shira_diffusion.packed import Packed, peak
from shira_diffusion.places import Places, Step, WeightTable
from shira_diffusion.scatter import read_many
from shira_diffusion.union import Union
from shira_diffusion.whole_base import WholeBase


class Plan:
    """The entries that `changes` (adapter -> its part in this table's weights) touch together.

    Make it while the weights hold their base values at these entries: `base` (n,) keeps them.
    """

    def __init__(self, table: WeightTable, changes: Mapping[str, Packed]):
        ordered = dict(sorted(changes.items()))
        self._whole = WholeBase.of(table, ordered)
        taken = self._whole.slots if self._whole is not None else frozenset[str]()
        self._changes = {name: one.without(taken) for name, one in ordered.items()}
        parts = list(self._changes.values())
        if len(parts) == 1:
            self._union = Union([parts[0].indices])
            self.places = Places(parts[0].indices, parts[0].counts)
        else:
            sizes = [weight.numel() for weight in table.weights]
            self._union = Union([_keys(part, sizes) for part in parts])
            self.places = _places(self._union.keys, sizes)
        self.base = read_many(table, self.places)
        self._base_peak = peak(self.base)
        self._last: tuple[Mapping[str, float], Step] | None = None

    @property
    def is_heavy(self) -> bool:
        """Whether it holds copies of whole weights."""
        return self._whole is not None

    def step(self, strengths: Mapping[str, float]) -> Step:
        """From the base to base + sum of strength * change, added in fp32 and rounded once.

        Raises `SettingError` for strengths beyond fp32's range, and `MismatchError` where the
        weights' dtype cannot hold the mix.
        """
        own = {name: strengths[name] for name in self._changes}
        if self._last is None or self._last[0] != own:
            whole = None if self._whole is None else self._whole.under(own)
            self._last = own, Step(self.places, self.base, self._mixed(own), whole)
        return self._last[1]

    def _mixed(self, strengths: Mapping[str, float]) -> Tensor:
        parts = self._changes.items()
        change = self._union.sum([part.values.float() * strengths[name] for name, part in parts])
        # Only where the largest values could leave the range is each of them looked at.
        reach = sum(abs(strengths[name]) * part.peak for name, part in parts)
        if not reach < _safe(torch.float32):
            require_in_range(change)
        dtype = self.base.dtype
        mixed = change.add_(self.base).to(dtype)
        if not reach + self._base_peak < _safe(dtype):
            require_finite(mixed, self.base)
        return mixed


def _safe(dtype: torch.dtype) -> float:
    return 0.99 * torch.finfo(dtype).max


def _starts(sizes: Sequence[int], like: Tensor) -> Tensor:
    """Where each weight begins if all lie one after another; one more for the end."""
    return torch.tensor([0, *accumulate(sizes)], dtype=like.dtype, device=like.device)


def _keys(part: Packed, sizes: Sequence[int]) -> Tensor:
    """Its indices, counted through all weights of `sizes` entries as if they were one."""
    indices = part.indices.to(index_dtype(sum(sizes)))
    counts = torch.tensor(part.counts, device=indices.device)
    starts = _starts(sizes, indices)[:-1]
    return indices + starts.repeat_interleave(counts, output_size=indices.numel())


def _places(keys: Tensor, sizes: Sequence[int]) -> Places:
    """The inverse of `_keys`."""
    starts = _starts(sizes, keys)
    bounds = torch.searchsorted(keys, starts)
    counts = bounds.diff()
    indices = keys - starts[:-1].repeat_interleave(counts, output_size=keys.numel())
    return Places(indices.to(index_dtype(max(sizes))), tuple(counts.tolist()))
