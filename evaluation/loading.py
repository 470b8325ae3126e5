"""Adapter files of every method as one kind of object."""

import dataclasses
from pathlib import Path

from diffusers import UNet2DConditionModel

from shira_diffusion import Adapter, SparseDelta
from shira_diffusion.lowrank import DoraDelta


def open_adapter(path: Path, unet: UNet2DConditionModel) -> Adapter:
    """Read an adapter of any method; a DoRA as the change that it makes to `unet` as it is now."""
    adapter = Adapter.load(path)
    weights = dict(unet.named_parameters())
    changes = {
        name: SparseDelta.from_dense(delta.change(weights[name.removeprefix("unet.")]))
        if isinstance(delta, DoraDelta)
        else delta
        for name, delta in adapter.deltas.items()
    }
    return dataclasses.replace(adapter, deltas=changes)
