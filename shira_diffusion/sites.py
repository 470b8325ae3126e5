"""The touched weights of a live model, grouped by where and how they lie."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from shira_diffusion.components import Links, Weights
from shira_diffusion.delta import VALUE_DTYPES
from shira_diffusion.errors import MismatchError
from shira_diffusion.places import Places, Step, WeightTable
from shira_diffusion.whole import Whole


@dataclass(frozen=True, eq=False)
class Group:
    """The weights of one device and dtype: their sorted `slots` and, in that order, their table."""

    slots: tuple[str, ...]
    table: WeightTable


class Sites:
    """The weights at some slots as they lie now; ask `is_current` before each use.

    `shapes` maps each slot to its weight's shape. Raises `MismatchError` for a weight that is
    gone, has another shape, or no dtype that adapters can change.
    """

    def __init__(self, weights: Weights, shapes: Mapping[str, tuple[int, ...]]):
        self.shapes = dict(sorted(shapes.items()))
        self._links = Links(weights, tuple(self.shapes))
        members: dict[tuple[torch.device, torch.dtype], list[str]] = {}
        live = dict(zip(self.shapes, self._links.weights, strict=True))
        for slot, weight in live.items():
            require_fit(slot, weight, self.shapes[slot])
            members.setdefault((weight.device, weight.dtype), []).append(slot)
        self.groups = tuple(
            Group(tuple(slots), WeightTable([live[slot] for slot in slots]))
            for slots in members.values()
        )

    def is_current(self) -> bool:
        """Whether the model has the same weights in the same memory."""
        return self.is_in_place() and self.is_linked()

    def is_in_place(self) -> bool:
        """Whether the weights' memory is where it was, so that writing to it does no harm."""
        return all(group.table.is_in_place() for group in self.groups)

    def is_linked(self) -> bool:
        """Whether the model still has these weights, in the same layout."""
        return self._links.hold() and all(group.table.is_laid_out() for group in self.groups)


def require_fit(slot: str, weight: Tensor, shape: tuple[int, ...]) -> None:
    """Raise `MismatchError` unless adapters can change this weight, taking it to have `shape`."""
    if tuple(weight.shape) != shape or weight.dtype not in VALUE_DTYPES:
        raise MismatchError(
            f"the weight {slot!r} is {weight.dtype} {tuple(weight.shape)} in this model, but "
            f"adapters change it as fp16, bf16 or fp32 {shape}"
        )


def followed(steps: Mapping[Group, Step], groups: tuple[Group, ...]) -> dict[Group, Step]:
    """The steps that were taken in older groups, as they lie in `groups` after moves and casts.

    Casting acts on each entry alone, so the cast values are those that the cast weights have.
    """
    by_slot: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
    wholes: dict[str, tuple[Tensor, Tensor]] = {}
    for group, step in steps.items():
        split = step.places.split
        entries = zip(step.places.parts, split(step.expected), split(step.values), strict=True)
        by_slot |= dict(zip(group.slots, entries, strict=True))
        if step.whole is not None:
            for number, expected in step.whole.expected.items():
                wholes[group.slots[number]] = expected, step.whole.values[number]
    moved = {}
    for group in groups:
        counts = [by_slot[slot][0].numel() if slot in by_slot else 0 for slot in group.slots]
        whole = _whole_in(wholes, group)
        if sum(counts) or whole is not None:
            parts = [by_slot[slot] for slot in group.slots if slot in by_slot]
            device, dtype = group.table.device, group.table.dtype
            indices = torch.cat([part[0].to(device) for part in parts])
            expected, values = (
                torch.cat([part[which].to(device, dtype) for part in parts]) for which in (1, 2)
            )
            moved[group] = Step(Places(indices, tuple(counts)), expected, values, whole)
    return moved


def _whole_in(wholes: Mapping[str, tuple[Tensor, Tensor]], group: Group) -> Whole | None:
    """Those of the whole weights, by slot, that lie in `group`, on its device and in its dtype."""
    found = {number: wholes[slot] for number, slot in enumerate(group.slots) if slot in wholes}
    if not found:
        return None
    device, dtype = group.table.device, group.table.dtype
    expected, values = (
        {number: pair[which].to(device, dtype) for number, pair in found.items()}
        for which in (0, 1)
    )
    return Whole(expected, values)
