"""The hot path: read and overwrite chosen entries of a live weight, bit for bit."""

from __future__ import annotations

import torch
from torch import Tensor


def read(weight: Tensor, indices: Tensor) -> Tensor:
    """A copy of `weight.flatten()[indices]`; (k,) in the weight's dtype.

    A weight whose entries do not lie in one piece (channels_last, a transposed view) is read by
    its logical order too, without a copy of the whole of it.
    """
    weight = weight.detach()
    if weight.is_contiguous():
        return weight.view(-1).index_select(0, indices)
    return weight.take(indices.long())


def write(weight: Tensor, indices: Tensor, values: Tensor) -> None:
    """Set `weight.flatten()[indices] = values` in place, whatever the weight's strides.

    `values` (k,) have the weight's dtype and device. `index_copy_` is the fastest op on CPU in
    every dtype (in bf16 14 times faster than `scatter_`); it needs a flat view, which `put_`
    does without.
    """
    with torch.no_grad():
        if weight.is_contiguous():
            weight.view(-1).index_copy_(0, indices.long(), values)
        else:
            weight.put_(indices.long(), values)
