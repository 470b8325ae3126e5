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
    steps = code.numpy()
    marks = _marks(steps, nnz)
    indices = torch.empty(nnz, dtype=index_dtype(numel))
    _fill(steps, marks, indices.numpy(), numel)
    return indices


def decode_into(steps: Code, indices: Places, numel: int) -> None:
    """As `decode`, into an array of int32 or int64 that has the right size."""
    _fill(steps, _marks(steps, indices.size), indices, numel)


def _marks(steps: Code, nnz: int) -> Places:
    """Where the code marks an entry."""
    marks = np.flatnonzero(steps != _SKIP)
    if marks.size != nnz:
        raise FormatError(f"the gap code marks {marks.size} entries but there are {nnz} values")
    if steps.size and steps[-1] == _SKIP:
        raise FormatError("the gap code ends in a skip")
    return marks


def _fill(steps: Code, marks: Places, indices: Places, numel: int) -> None:
    # Half the bytes take half the time, as long as no code of this length can count beyond them.
    short = (_SKIP + 1) * steps.size < 2**31
    kind: np.dtype[np.signedinteger[Any]] = np.dtype(np.int32 if short else np.int64)
    # A mark moves past the entry itself too, a skip only over what it skips.
    places = np.cumsum(steps, dtype=kind)[marks] + np.arange(marks.size, dtype=kind)
    if marks.size and places[-1] >= numel:
        raise FormatError(f"the gap code reaches entry {places[-1]} of a weight with {numel}")
    indices[:] = places
