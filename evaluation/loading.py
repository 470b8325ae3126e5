"""Adapter files of every method as one kind of object."""

from pathlib import Path

from diffusers import StableDiffusionXLPipeline

from shira_diffusion import Adapter, SparseDelta
from shira_diffusion.formats import read_info
from shira_diffusion.pipeline import target_weights


def open_adapter(path: Path, pipe: StableDiffusionXLPipeline) -> Adapter:
    """Read an adapter; a DoRA, whose change depends on the base, is taken from the fused base.

    `pipe` is given back as it was, bit for bit.
    """
    if read_info(path).method != "dora":
        return Adapter.load(path)
    weights = target_weights(pipe.unet, ["attention"])
    before = {name: weight.detach().clone() for name, weight in weights.items()}
    pipe.load_lora_weights(str(path), adapter_name="dora")
    try:
        pipe.fuse_lora(components=["unet"])
        changes = {
            name: parameter.detach() - before[plain]
            for name, parameter in pipe.unet.named_parameters()
            if (plain := name.replace(".base_layer.", ".")) in before
        }
    finally:
        pipe.unload_lora_weights()
    raise NotImplementedError(changes, SparseDelta)
