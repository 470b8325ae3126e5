"""Adapter files of every method as one kind of object."""

from pathlib import Path

from diffusers import UNet2DConditionModel

from shira_diffusion import Adapter
from shira_diffusion.fitting import changes_of


def open_adapter(path: Path, unet: UNet2DConditionModel) -> Adapter:
    """Read an adapter of any method; a DoRA as the change that it makes to `unet` as it is now."""
    weights = dict(unet.named_parameters())
    return changes_of(Adapter.load(path), lambda name: weights[name.removeprefix("unet.")])
