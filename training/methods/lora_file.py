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
    path: Path,
    tensors: Mapping[str, Tensor],
    settings: Mapping[str, LoraConfig],
    info: AdapterInfo,
) -> None:
    """Write the tensors of components, with PEFT's settings, as what `load_lora_weights` reads.

    Factors are written in fp16. Vectors stay in fp32: a DoRA's magnitude scales a whole row of the
    weight, and is small.
    """
    stored = {
        name: (tensor.to(torch.float16) if tensor.dim() > 1 else tensor).contiguous()
        for name, tensor in tensors.items()
    }
    container.write(path, stored, metadata.encode(info) | _diffusers_metadata(settings))


def _diffusers_metadata(settings: Mapping[str, LoraConfig]) -> dict[str, str]:
    """Return rank, alpha and targets in the words that diffusers looks for."""
    stated = {
        f"{component}.{key}": sorted(value) if isinstance(value, set) else value
        for component, one in settings.items()
        for key, value in one.to_dict().items()
    }
    return {"format": "pt", LORA_ADAPTER_METADATA_KEY: json.dumps(stated, sort_keys=True)}
