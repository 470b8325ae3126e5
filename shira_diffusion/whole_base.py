"""The base of weights that adapters change in every entry, and what a mix makes of it."""

from __future__ import annotations

from collections.abc import Mapping

from shira_diffusion.adapter import Delta
from shira_diffusion.mixture import mixed
from shira_diffusion.packed import Packed
from shira_diffusion.places import WeightTable
from shira_diffusion.whole import Whole


class WholeBase:
    """The weights of a table that have a LoRA among their `changes`, by adapter.

    Make it while they hold their base values. While a mix is in the model two copies of each are
    kept, the base and what it was changed to; the LoRA itself stays as its factors.
    """

    def __init__(self, table: WeightTable, changes: Mapping[str, Packed], slots: frozenset[str]):
        self.slots = slots
        self._terms: dict[int, dict[str, Delta]] = {}
        for number, slot in enumerate(next(iter(changes.values())).slots):
            if slot in slots:
                shape = tuple(table.weights[number].shape)
                parts = {name: one.part(slot, shape) for name, one in changes.items()}
                self._terms[number] = {name: one for name, one in parts.items() if one is not None}
        self._base = {number: table.weights[number].detach().clone() for number in self._terms}

    @classmethod
    def of(cls, table: WeightTable, changes: Mapping[str, Packed]) -> WholeBase | None:
        """None where every change is sparse. `changes` have the slots of the table's weights."""
        slots = frozenset(slot for one in changes.values() for slot in one.factors)
        return cls(table, changes, slots) if slots else None

    def under(self, strengths: Mapping[str, float]) -> Whole:
        """From the base to the mix of these strengths; see `mixture.mixed` for what is raised."""
        values = {
            number: mixed(
                self._base[number], [(one, strengths[name]) for name, one in terms.items()]
            )
            for number, terms in self._terms.items()
        }
        return Whole(self._base, values)
