"""The sorted indices of many weights in two planes: a byte for each gap, and where gaps are longer.

A gap is the number of entries between an index and the one before it in the same weight. The plane
`gaps` (nnz,) has every gap modulo 256. A gap of 256 or more has a skip for each 256 in it, and the
plane `skips` tells to which entries they belong, counted through all weights from 0: a byte below
255 goes as many entries on (0 stays where it is) and marks a skip, 255 goes 255 on and marks none.

To read this is a widening addition, a few more for the skips, and one running sum. Skips among the
gaps, as in `gaps`, cost three times as much: every byte after one has to be moved.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
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
# Entries.
_BLOCK = 2**17

Numbers = np.ndarray[Any, np.dtype[np.signedinteger[Any]]]


def encode(indices: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Both planes, uint8, of the sorted unique indices (n,) of each weight."""
    lows, owners, before = [np.empty(0, np.uint8)], [np.empty(0, np.int64)], 0
    for own in indices:
        distances = own.cpu().long().diff(prepend=torch.tensor([-1])).sub_(1).numpy()
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
    owned = np.searchsorted(owners, ends.astype(owners.dtype))
    # No index of a weight lies beyond this, whatever the file says, so that no sum overflows.
    furthest = int((_SKIP * (counts + np.diff(owned, prepend=0))).max(initial=0))
    largest = max((one.numel for one in touched.values()), default=0)
    indices = memory.empty(low.numel(), index_dtype(max(furthest, largest)))

    blocks = list(_blocks(ends))
    # torch's number of threads, as numpy and torch let the others work meanwhile.
    shares = max(1, min(torch.get_num_threads(), len(blocks)))

    def run(share: int) -> None:
        for block in blocks[share::shares]:
            begins = (ends - counts)[block]
            begin, end = int(begins[0]), int(ends[block][-1])
            first_owner = owned[block.start - 1] if block.start else 0
            own = owners[first_owner : owned[block.stop - 1]] - begin
            _decode_block(low[begin:end], own, (begins - begin).tolist(), indices[begin:end])

    # Threads of a pool start with their work: with one share there are none.
    with ThreadPoolExecutor(shares) as pool:
        others = pool.map(run, range(1, shares))
        run(0)
        list(others)
    _check_reach(touched, indices.numpy()[ends - 1].tolist())
    return indices


def _blocks(ends: Numbers) -> Iterator[slice]:
    """Weights, of which the n-th ends at `ends[n]`, in parts that fit the processor's cache."""
    first, begin = 0, 0
    while first < ends.size:
        last = max(first + 1, int(np.searchsorted(ends, begin + _BLOCK, side="right")))
        yield slice(first, last)
        first, begin = last, int(ends[last - 1])


def _decode_block(low: Tensor, owners: Numbers, begins: list[int], out: Tensor) -> None:
    """Write the indices of some weights, of which the n-th begins at `begins[n]`."""
    steps: Numbers = out.numpy()
    steps[:] = low.numpy()
    steps += 1
    steps[begins] -= 1
    skip = torch.tensor(_SKIP, dtype=out.dtype)
    out.index_add_(0, torch.from_numpy(owners), skip.expand(owners.size))
    for begin, end in pairwise([*begins, steps.size]):
        own = steps[begin:end]
        np.add.accumulate(own, out=own, dtype=own.dtype)


def _owners(skips: Tensor, nnz: int) -> Numbers:
    """For each skip the number of the entry that it belongs to, rising, below `nnz`."""
    steps = skips.numpy()
    if steps.size and steps[-1] == _NONE:
        raise FormatError("the skips end in a step to none")
    owners: Numbers = memory.empty(steps.size, index_dtype(max(_NONE * steps.size, nnz))).numpy()
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
