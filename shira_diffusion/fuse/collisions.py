"""Three answers to several adapters changing one entry: add them, average them, take one of them.

Alone in an entry, an adapter gets its strength * change in each. None of the answers depends on
the order of the adapters.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from shira_diffusion.adapter import Adapter
from shira_diffusion.fuse.parts import Parts, fused
from shira_diffusion.union import Union


def weighted_sum(parts: Parts, *, name: str) -> Adapter:
    """The sum of strength * change over all `parts`, as one adapter.

    Applied at strength 1 it gives the weights that the mix itself gives, bit for bit. See
    `parts.fused` for what it touches and raises.
    """
    return fused(parts, Union.sum, name=name)


def mean(parts: Parts, *, name: str) -> Adapter:
    """The mean of strength * change over those of `parts` that touch an entry.

    See `parts.fused` for what it touches and raises.
    """

    def rule(union: Union, values: Sequence[Tensor]) -> Tensor:
        return union.sum(values) / union.meeting

    return fused(parts, rule, name=name, how="mean of ")


def strongest(parts: Parts, *, name: str) -> Adapter:
    """The strength * change that is largest in magnitude; of two opposite ones the positive one.

    See `parts.fused` for what it touches and raises.
    """

    def rule(union: Union, values: Sequence[Tensor]) -> Tensor:
        low, high = union.spread(values).aminmax(dim=0)
        return torch.where(high >= -low, high, low)

    return fused(parts, rule, name=name, how="strongest of ")
