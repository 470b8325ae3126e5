"""Version 2 of the native file, which is read and no longer written.

For each dtype of values `<dtype>.gaps` (uint8, see `gaps`) and `<dtype>.values`, weight after
weight in the order of their sorted names; a leaf of `shira.layout` is
`[shape, entries, bytes of code]`.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from shira_diffusion.delta import SparseDelta, index_dtype
from shira_diffusion.errors import FormatError
from shira_diffusion.formats import container, gaps, groups, memory
from shira_diffusion.formats.groups import Group

_ENTRIES_WORTH_A_THREAD = 500_000


def deltas(file: container.Container) -> dict[str, SparseDelta]:
    """The changes of every weight; raises `FormatError` for what is wrong."""
    return groups.deltas(file, ("gaps",), 2, _indices)


def _indices(group: Group) -> Tensor:
    """The indices of all weights, one after another.

    Weights are decoded in torch's number of threads: numpy lets the others work meanwhile.
    """
    (code,), values, extents = group.codes, group.values, group.extents
    counts = [one.nnz for one in extents.values()]
    lengths = [one.sizes[1] for one in extents.values()]
    if (sum(counts), sum(lengths)) != (values.numel(), code.numel()):
        raise FormatError(
            f"{groups.LAYOUT_KEY} speaks of {sum(counts)} entries in {sum(lengths)} bytes, but "
            f"there are {values.numel()} in {code.numel()}"
        )
    largest = max((one.numel for one in extents.values()), default=0)
    indices = memory.empty(values.numel(), index_dtype(largest))
    jobs = list(zip(extents.items(), code.split(lengths), indices.split(counts), strict=True))
    shares = min(torch.get_num_threads(), 1 + values.numel() // _ENTRIES_WORTH_A_THREAD)

    def run(share: int) -> None:
        for (name, one), own, out in jobs[share::shares]:
            try:
                gaps.decode_into(own.numpy(), out.numpy(), one.numel)
            except FormatError as error:
                raise FormatError(f"the weight {name!r}: {error}") from error

    with ThreadPoolExecutor(shares) as pool:
        list(pool.map(run, range(shares)))
    return indices
