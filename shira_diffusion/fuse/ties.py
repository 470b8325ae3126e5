"""TIES-merging (arXiv 2306.01708): trim, elect signs, and average what agrees."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from shira_diffusion.adapter import Adapter
from shira_diffusion.fuse.parts import Parts, fused
from shira_diffusion.fuse.thin import prune
from shira_diffusion.union import Union


def ties(parts: Parts, *, keep: float, name: str) -> Adapter:
    """Of each adapter the share `keep` of its entries largest in magnitude, merged by sign.

    The sign of an entry is that of the sum of strength * change; the result is the mean of those
    that have this sign, 0 where the sum is 0. The paper trims a dense change, `keep` counts the
    entries that an adapter has: for an adapter that touches everything they are the same. See
    `parts.fused` for what is raised.
    """
    trimmed = [(prune(adapter, keep), strength) for adapter, strength in parts]
    return fused(trimmed, _elected_mean, name=name, how=f"TIES {keep:g} of ")


def _elected_mean(union: Union, values: Sequence[Tensor]) -> Tensor:
    elected = union.sum(values).sign()
    agreed = [one * (one.sign() == elected[at]) for at, one in zip(union.at, values, strict=True)]
    votes = union.sum([(one != 0).float() for one in agreed])
    return union.sum(agreed) / votes.clamp(min=1.0)
