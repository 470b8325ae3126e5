"""Adapter files of every method as one kind of object."""

from pathlib import Path

from diffusers import UNet2DConditionModel

from evaluation.peft_changes import dora_change
from shira_diffusion import Adapter
from shira_diffusion.formats import read_info


def open_adapter(path: Path, unet: UNet2DConditionModel) -> Adapter:
    """Read an adapter of any method; a DoRA, whose change depends on the base, through PEFT."""
    return dora_change(unet, path) if read_info(path).method == "dora" else Adapter.load(path)
