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
Places = np.ndarray[Any, np.dtype[np.signedinteger[Any]]]


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
    indices = torch.empty(nnz, dtype=index_dtype(numel))
    decode_into(code.numpy(), indices.numpy(), numel)
    return indices


def decode_into(steps: Code, indices: Places, numel: int) -> None:
    """As `decode`, into an array of int32 or int64 that has the right size."""
    marks = steps != _SKIP
    count = np.count_nonzero(marks)
    if count != indices.size:
        raise FormatError(f"the gap code marks {count} entries but there are {indices.size} values")
    if steps.size and steps[-1] == _SKIP:
        raise FormatError("the gap code ends in a skip")
    if not count:
        return
    # Half the bytes take half the time, as long as no code of this length can count beyond them.
    short = (_SKIP + 1) * steps.size < 2**31
    kind: np.dtype[np.signedinteger[Any]] = np.dtype(np.int32 if short else np.int64)
    skipped = np.cumsum(steps, dtype=kind)[marks]
    last = int(skipped[-1]) + count - 1
    if last >= numel:
        raise FormatError(f"the gap code reaches entry {last} of a weight with {numel}")
    # A mark moves past the entry itself too, a skip only over what it skips.
    np.add(skipped, np.arange(count, dtype=kind), out=indices, casting="same_kind")
