"""A LoRA's file as diffusers, PEFT and their users expect it."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from peft import LoraConfig
from torch import Tensor

from shira_diffusion import AdapterInfo
from shira_diffusion.formats import container, metadata


def write_lora(
    path: Path, tensors: Mapping[str, Tensor], settings: LoraConfig, info: AdapterInfo
) -> None:
    """Write the UNet's tensors, under PEFT's names, as the file that `load_lora_weights` reads.

    Factors are written in fp16. Vectors stay in fp32: a DoRA's magnitude scales a whole row of the
    weight, and is small.
    """
    stored = {
        f"unet.{name}": (tensor.to(torch.float16) if tensor.dim() > 1 else tensor).contiguous()
        for name, tensor in tensors.items()
    }
    container.write(path, stored, metadata.encode(info) | _diffusers_metadata(settings))


def _diffusers_metadata(settings: LoraConfig) -> dict[str, str]:
    """Return rank, alpha and targets in the words that diffusers looks for."""
    stated = {
        f"unet.{key}": sorted(value) if isinstance(value, set) else value
        for key, value in settings.to_dict().items()
    }
    return {"format": "pt", LORA_ADAPTER_METADATA_KEY: json.dumps(stated, sort_keys=True)}
