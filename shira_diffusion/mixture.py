"""One weight under several changes: summed in fp32 in any order alike, and rounded once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from shira_diffusion.adapter import Delta
from shira_diffusion.delta import SparseDelta
from shira_diffusion.errors import MismatchError, SettingError
from shira_diffusion.union import Union, rising_sum

Terms = Sequence[tuple[Delta, float]]
"""The changes of one weight and the strengths at which they are taken."""


def mixed(base: Tensor, terms: Terms) -> Tensor:
    """`base` + the sum of strength * change, a new tensor in the base's dtype and on its device.

    The same values as in a model under this mix, bit for bit. Raises `SettingError` for strengths
    beyond fp32's range, and `MismatchError` where the dtype cannot hold the result.
    """
    sparse = [(one, strength) for one, strength in terms if isinstance(one, SparseDelta)]
    if len(sparse) == len(terms):
        return _sparsely(base, sparse)
    change = _sum([_dense(base, one, strength) for one, strength in terms])
    require_in_range(change)
    result = change.add_(base).to(base.dtype)
    require_finite(result, base)
    return result


def require_in_range(change: Tensor) -> None:
    """Raise `SettingError` unless a sum of changes, fp32, is finite."""
    if not bool(change.isfinite().all()):
        raise SettingError("these strengths take the changes out of fp32's range; use smaller ones")


def require_finite(result: Tensor, base: Tensor) -> None:
    """Raise `MismatchError` unless the weight is finite wherever its base is."""
    if not bool((result.isfinite() | ~base.isfinite()).all()):
        raise MismatchError(
            f"this mix leaves the range of {base.dtype}; use smaller strengths, or load the "
            "model in bf16 or fp32"
        )


def _sparsely(base: Tensor, terms: Sequence[tuple[SparseDelta, float]]) -> Tensor:
    # Not `clone()`, which keeps strides: the entries are counted row by row.
    result = base.detach().clone(memory_format=torch.contiguous_format)
    if not terms:
        return result
    union = Union([delta.indices.to(base.device) for delta, _ in terms])
    change = union.sum([delta.values.to(base.device).float() * one for delta, one in terms])
    require_in_range(change)
    flat, places = result.view(-1), union.keys.long()
    before = flat[places]
    after = change.add_(before).to(base.dtype)
    require_finite(after, before)
    flat.index_copy_(0, places, after)
    return result


def _dense(base: Tensor, delta: Delta, strength: float) -> Tensor:
    delta = delta.to(base.device)
    change = delta.to_dense().float() if isinstance(delta, SparseDelta) else delta.change(base)
    return change.mul_(strength)


def _sum(terms: Sequence[Tensor]) -> Tensor:
    if len(terms) == 1:
        return terms[0]
    # Two floats have one sum; of three or more it depends on the order.
    return terms[0] + terms[1] if len(terms) == 2 else rising_sum(torch.stack(list(terms)))
