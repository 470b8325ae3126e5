"""Sparse vectors over one range, joined: all their places, and a sum that no order changes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor


class Union:
    """The union of several sets of places, each (n_i,) int32 or int64, sorted and unique.

    `keys` (n,) are all places, sorted and unique, in the widest type of the sets.
    """

    def __init__(self, sets: Sequence[Tensor]):
        assert sets, "a union of nothing has no type"
        self._sizes = [one.numel() for one in sets]
        if len(sets) == 1:
            self.keys = sets[0]
        else:
            self.keys, self._inverse = torch.cat(list(sets)).unique(return_inverse=True)

    @cached_property
    def at(self) -> tuple[Tensor, ...]:
        """Where each set lies in `keys`, (n_i,) int64."""
        if len(self._sizes) == 1:
            return (torch.arange(self._sizes[0], device=self.keys.device),)
        return self._inverse.split(self._sizes)

    @cached_property
    def meeting(self) -> Tensor:
        """How many sets hold each key, (n,) int32."""
        meeting = torch.zeros(self.keys.numel(), dtype=torch.int32, device=self.keys.device)
        for at in self.at:
            meeting.index_add_(0, at, torch.ones_like(at, dtype=torch.int32))
        return meeting

    def spread(self, values: Sequence[Tensor]) -> Tensor:
        """One row for each set, (sets, n) in fp32: its values (n_i,) at its keys, else 0."""
        rows = torch.zeros(len(self._sizes), self.keys.numel(), device=self.keys.device)
        for row, at, one in zip(rows, self.at, values, strict=True):
            row.index_copy_(0, at, one.float())
        return rows

    def sum(self, values: Sequence[Tensor]) -> Tensor:
        """The sum over all sets of their values (n_i,) fp32; (n,) fp32.

        A sum of three or more floats depends on its order, and this one must not depend on that
        of the sets: where so many meet, terms are added from the smallest to the largest.
        """
        if len(self._sizes) == 1:
            return values[0]
        total = torch.zeros(self.keys.numel(), device=self.keys.device)
        for at, one in zip(self.at, values, strict=True):
            total.index_add_(0, at, one)
        crowded, members = self._crowded
        rows = torch.zeros(len(members), crowded.numel(), device=crowded.device)
        for row, (inside, of_set), one in zip(rows, members, values, strict=True):
            row[inside] = one[of_set]
        return total.index_copy_(0, crowded, rising_sum(rows))

    @cached_property
    def _crowded(self) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """Where three or more meet, as places in `keys`, and each set's entries among them.

        Those are pairs: the places among the crowded ones, and the same entries in the set.
        """
        crowded = (self.meeting > 2).nonzero().squeeze(1)
        number = torch.full_like(self.meeting, -1)
        number[crowded] = torch.arange(crowded.numel(), dtype=torch.int32, device=crowded.device)
        members = []
        for at in self.at:
            inside = number[at]
            of_set = (inside >= 0).nonzero().squeeze(1)
            members.append((inside[of_set].long(), of_set))
        return crowded, members


def rising_sum(rows: Tensor) -> Tensor:
    """The sum over rows (m, n), smallest first."""
    total = torch.zeros_like(rows[0])
    for row in rows.sort(dim=0).values:
        total += row
    return total
