"""The sorted indices of many weights in two planes: a byte for each gap, and where gaps are longer.

A gap is the number of entries between an index and the one before it in the same weight. The plane
`gaps` (nnz,) has every gap modulo 256. A gap of 256 or more has a skip for each 256 in it, and the
plane `skips` tells to which entries they belong, counted through all weights from 0: a byte below
255 goes as many entries on (0 stays where it is) and marks a skip, 255 goes 255 on and marks none.

To read this is a widening addition, a few more for the skips, and one running sum. Skips among the
gaps, as in version 2, cost three times as much: every byte after one has to be moved.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from shira_diffusion.delta import index_dtype
from shira_diffusion.errors import FormatError
from shira_diffusion.formats import gaps, memory
from shira_diffusion.formats.layout import Extent

# One more than a byte holds, so that a gap modulo this is its lowest byte.
_SKIP = 256
_NONE = 255

Numbers = np.ndarray[Any, np.dtype[np.signedinteger[Any]]]


def encode(indices: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Both planes, uint8, of the sorted unique indices (n,) of each weight."""
    lows, owners, before = [np.empty(0, np.uint8)], [np.empty(0, np.int64)], 0
    for own in indices:
        distances = np.diff(own.cpu().numpy().astype(np.int64), prepend=-1) - 1
        long = np.flatnonzero(distances >= _SKIP)
        lows.append(distances.astype(np.uint8))
        owners.append(np.repeat(long + before, distances[long] // _SKIP))
        before += distances.size
    places = np.concatenate(owners)
    # Every owner comes one later for each skip before it; then none is there twice.
    places += np.arange(places.size)
    return torch.from_numpy(np.concatenate(lows)), gaps.encode(torch.from_numpy(places))


def decode(extents: Mapping[str, Extent], low: Tensor, skips: Tensor) -> Tensor:
    """The indices (nnz,) of all weights one after another, of which `low` has as many bytes.

    They are int32, and int64 if a weight needs it. Raises `FormatError` for planes that no indices
    have. Memory is bounded by the planes' own length.
    """
    touched = {name: one for name, one in extents.items() if one.nnz}
    counts = np.array([one.nnz for one in touched.values()], dtype=np.int64)
    ends = np.cumsum(counts)
    owners = _owners(skips, low.numel())
    skipped = np.diff(np.searchsorted(owners, ends), prepend=0)
    # No index of a weight lies beyond this, whatever the file says, so that no sum overflows.
    furthest = int((_SKIP * (counts + skipped)).max(initial=0))
    largest = max((one.numel for one in touched.values()), default=0)
    indices = memory.empty(low.numel(), index_dtype(max(furthest, largest)))
    steps: Numbers = indices.numpy()
    np.add(low.numpy(), 1, out=steps, dtype=steps.dtype)
    steps[ends - counts] -= 1
    skip = torch.tensor(_SKIP, dtype=indices.dtype)
    indices.index_add_(0, torch.from_numpy(owners), skip.expand(owners.size))
    for start, end in zip((ends - counts).tolist(), ends.tolist(), strict=True):
        own = steps[start:end]
        np.add.accumulate(own, out=own, dtype=own.dtype)
    _check_reach(touched, steps[ends - 1].tolist())
    return indices


def _owners(skips: Tensor, nnz: int) -> Numbers:
    """For each skip the number of the entry that it belongs to, rising, below `nnz`."""
    steps = skips.numpy()
    if steps.size and steps[-1] == _NONE:
        raise FormatError("the skips end in a step to none")
    owners: Numbers = memory.empty(steps.size, index_dtype(_NONE * steps.size)).numpy()
    owners[:] = steps
    np.add.accumulate(owners, out=owners, dtype=owners.dtype)
    if steps.max(initial=0) == _NONE:
        owners = owners[steps != _NONE]
    if owners.size and owners[-1] >= nnz:
        raise FormatError(f"a skip belongs to entry {owners[-1]}, but there are {nnz}")
    return owners


def _check_reach(extents: Mapping[str, Extent], lasts: list[int]) -> None:
    """Require the last index of each weight, its largest, to lie in it."""
    for (name, one), last in zip(extents.items(), lasts, strict=True):
        if last >= one.numel:
            raise FormatError(
                f"the weight {name!r}: its gaps reach entry {last}, but it has {one.numel}"
            )
