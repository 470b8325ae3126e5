"""Weights that are exchanged as a whole: a LoRA changes every entry, so no indices are kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from shira_diffusion.errors import EntriesChangedError

_BITS = {2: torch.int16, 4: torch.int32}


@dataclass(frozen=True, eq=False)
class Whole:
    """Weights of one table, by number, that hold `expected` and shall hold `values`."""

    expected: Mapping[int, Tensor]
    values: Mapping[int, Tensor]

    def reversed(self) -> Whole:
        """The way back."""
        return Whole(self.values, self.expected)


def exchange(weights: Sequence[Tensor], whole: Whole) -> None:
    """Write all values, or none: raises `EntriesChangedError` where a weight is not as expected.

    NaN is equal to NaN. The host waits once, for the verdict on all weights.
    """
    numbers = list(whole.values)
    if not numbers:
        return
    verdicts = [_is(weights[number], whole.expected[number]) for number in numbers]
    changed = (~torch.stack(verdicts)).nonzero()
    if len(changed):
        raise EntriesChangedError(numbers[int(changed[0])], 0)
    with torch.no_grad():
        for number in numbers:
            weights[number].copy_(whole.values[number])


def _is(weight: Tensor, expected: Tensor) -> Tensor:
    """Whether the two are equal; () bool on their device."""
    weight = weight.detach()
    bits = _BITS[weight.element_size()]
    same = weight.view(bits) == expected.view(bits)
    return (same | (weight == expected) | (weight.isnan() & expected.isnan())).all()
