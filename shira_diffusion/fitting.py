"""Adapters on a base that is not in memory: whether they are made for it, and a DoRA's change."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

from torch import Tensor

from shira_diffusion.adapter import Adapter, Delta
from shira_diffusion.delta import SparseDelta
from shira_diffusion.errors import MismatchError
from shira_diffusion.formats.checkpoint import Checkpoint
from shira_diffusion.lowrank import DoraDelta


def require_made_for(adapter: Adapter, base: Checkpoint, marks: Mapping[str, str]) -> None:
    """Raise `MismatchError` for an adapter of another base: by fingerprint, names or shapes.

    `marks` are the fingerprints of `base`. A component that `base` lacks is not compared, unless
    the adapter changes it.
    """
    for component, mark in adapter.info.base_fingerprint.items():
        if marks.get(component, mark) != mark:
            raise MismatchError(
                f"the adapter {adapter.info.name!r} was made for "
                f"{adapter.info.base_model or 'another base'}, whose {component!r} is not that "
                f"of {base.path}; if they are close (a fine-tune), declare it fit with `shira tag "
                "FILE --base BASE`, in Python with adapter.for_base"
            )
    for name, delta in adapter.deltas.items():
        shape = base.shape(name)
        if shape != delta.shape:
            raise MismatchError(
                f"the adapter {adapter.info.name!r} changes {name!r} as {delta.shape}, but in "
                f"{base.path} it is {shape}"
            )


def resolved(adapter: Adapter, base: Checkpoint) -> Adapter:
    """A DoRA as the change that it makes to `base`, see `changes_of`; others as they are.

    Raises `MismatchError` for a DoRA of another base.
    """
    if not any(isinstance(delta, DoraDelta) for delta in adapter.deltas.values()):
        return adapter
    require_made_for(adapter, base, base.fingerprints())
    return changes_of(adapter, base.read)


def changes_of(adapter: Adapter, read: Callable[[str], Tensor]) -> Adapter:
    """The adapter with every DoRA's change of the weight that `read` gives by its name, as entries.

    They are in fp32: eight bytes for each entry of such a weight, all in memory.
    """

    def change(name: str, delta: Delta) -> Delta:
        if isinstance(delta, DoraDelta):
            return SparseDelta.from_dense(delta.change(read(name)))
        return delta

    deltas = {name: change(name, delta) for name, delta in adapter.deltas.items()}
    return dataclasses.replace(adapter, deltas=deltas)
