"""A LoRA's file as its users' programs expect it: diffusers, ComfyUI, A1111 and kohya's scripts."""

import json
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from peft import LoraConfig
from torch import Tensor

from shira_diffusion import AdapterInfo, modelspec
from shira_diffusion.formats import container, metadata
from shira_diffusion.formats.kohya import Naming, flat_name

_FACTOR = re.compile(r"(.+)\.lora_(A|B)\.weight")
_KOHYA = {"A": "lora_down", "B": "lora_up"}


def write_lora(
    path: Path,
    tensors: Mapping[str, Tensor],
    settings: Mapping[str, LoraConfig],
    info: AdapterInfo,
) -> None:
    """Write the tensors of components, under PEFT's names, with PEFT's settings.

    A LoRA gets kohya's names, which all these programs read. A DoRA keeps PEFT's: the one shape of
    a magnitude that ComfyUI reads under kohya's names diffusers does not. Factors are written in
    fp16. Vectors stay in fp32: a DoRA's magnitude scales a whole row of the weight, and is small.
    """
    stored = {
        name: (tensor.to(torch.float16) if tensor.dim() > 1 else tensor).contiguous()
        for name, tensor in tensors.items()
    }
    if any(one.use_dora for one in settings.values()):
        more = _diffusers_metadata(settings)
    else:
        stored, more = _kohya_names(stored, settings), _kohya_metadata(settings, info)
    container.write(path, stored, {**metadata.encode(info), "format": "pt", **more})


def _kohya_names(
    tensors: Mapping[str, Tensor], settings: Mapping[str, LoraConfig]
) -> dict[str, Tensor]:
    """Return factors under kohya's names, the UNet's blocks called as in diffusers, and alphas."""
    renamed = {}
    for name, tensor in tensors.items():
        match = _FACTOR.fullmatch(name)
        assert match is not None, name
        layer, factor = match.groups()
        flat = flat_name(layer, Naming.DIFFUSERS)
        renamed[f"{flat}.{_KOHYA[factor]}.weight"] = tensor
        alpha = settings[layer.partition(".")[0]].lora_alpha
        renamed[f"{flat}.alpha"] = torch.tensor(float(alpha))
    return renamed


def _kohya_metadata(settings: Mapping[str, LoraConfig], info: AdapterInfo) -> dict[str, str]:
    """Return what A1111 and kohya's scripts look for: the base's kind above all."""
    first = next(iter(settings.values()))
    return modelspec.kohya(info, rank=first.r) | {"ss_network_alpha": f"{first.lora_alpha:g}"}


def _diffusers_metadata(settings: Mapping[str, LoraConfig]) -> dict[str, str]:
    """Return rank, alpha and targets in the words that diffusers looks for."""
    stated = {
        f"{component}.{key}": sorted(value) if isinstance(value, set) else value
        for component, one in settings.items()
        for key, value in one.to_dict().items()
    }
    return {LORA_ADAPTER_METADATA_KEY: json.dumps(stated, sort_keys=True)}
