"""Adapters on a base that is not in memory: whether they were made for it."""

from __future__ import annotations

from collections.abc import Mapping

from shira_diffusion.adapter import Adapter
from shira_diffusion.errors import MismatchError
from shira_diffusion.formats.checkpoint import Checkpoint


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
