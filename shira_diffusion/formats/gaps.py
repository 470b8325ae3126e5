"""Sorted indices as one byte a gap: about 1.08 bytes an index at 1 % random entries.

A byte below 255 skips as many entries and marks the next one; 255 skips 255 and marks none.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from shira_diffusion.delta import index_dtype
from shira_diffusion.errors import FormatError

_SKIP = 255

Code = np.ndarray[Any, np.dtype[np.uint8]]


def encode(indices: Tensor) -> Tensor:
    """uint8 gap code of sorted unique indices (nnz,); `decode` is its inverse."""
    flat = indices.cpu().numpy().astype(np.int64)
    skips, rest = np.divmod(np.diff(flat, prepend=-1) - 1, _SKIP)
    ends = np.cumsum(skips + 1)
    code = np.full(ends[-1] if ends.size else 0, _SKIP, dtype=np.uint8)
    code[ends - 1] = rest
    return torch.from_numpy(code)


def decode(code: Tensor, nnz: int, numel: int) -> Tensor:
    """The `nnz` indices below `numel` that a uint8 `code` stands for.

    Raises `FormatError` for a code that no indices have: another number of them, one out of
    bounds, or a skip at the end. Memory is bounded by the code's own length.
    """
    steps: Code = code.numpy()
    marks = steps != _SKIP
    count = np.count_nonzero(marks)
    if count != nnz:
        raise FormatError(f"the gap code marks {count} entries but there are {nnz} values")
    if steps.size and steps[-1] == _SKIP:
        raise FormatError("the gap code ends in a skip")
    # A mark moves past the entry itself too, a skip only over what it skips.
    places = np.cumsum(steps, dtype=np.int64)[marks] + np.arange(count)
    if count and places[-1] >= numel:
        raise FormatError(f"the gap code reaches entry {places[-1]} of a weight with {numel}")
    return torch.from_numpy(places).to(index_dtype(numel))
