"""The ways of training that the step benchmark compares, each on a fresh UNet's attention."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from diffusers import UNet2DConditionModel
from diffusers.training_utils import cast_training_params
from peft import LoraConfig, ShiraConfig, inject_adapter_in_model
from torch import nn

from benchmarks.models import DENSITY, LORA_TARGETS, attention
from shira_diffusion import SparseTuner, masks


def _nothing() -> None:
    """What there is to write when the model reads the trained values themselves."""


@dataclass(frozen=True)
class Trained:
    """What a method trains in a UNet, and what a step has to do for it besides."""

    parameters: list[nn.Parameter]
    write: Callable[[], None] = _nothing
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext
    tuner: SparseTuner | None = None


def ours(unet: UNet2DConditionModel) -> Trained:
    """1 % of the entries in place, at random."""
    indices = {
        name: masks.rand(
            weight.shape, masks.count(weight.numel(), DENSITY), masks.layer_generator(0, name)
        )
        for name, weight in attention(unet).items()
    }
    tuner = SparseTuner(unet, indices)
    return Trained(tuner.parameters(), write=tuner.write, tuner=tuner)


def lora(unet: UNet2DConditionModel, rank: int = 64) -> Trained:
    """LoRA through PEFT as diffusers' examples train it: fp32 factors under autocast."""
    unet.requires_grad_(False)
    unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=LORA_TARGETS))
    return _factors(unet)


def peft_shira(unet: UNet2DConditionModel) -> Trained:
    """PEFT's own SHiRA, of the rank whose number of values is nearest to ours."""
    unet.requires_grad_(False)
    weights = list(attention(unet).values())
    ours = sum(masks.count(weight.numel(), DENSITY) for weight in weights)
    rank = max(1, round(ours / sum(sum(weight.shape) for weight in weights)))
    settings = ShiraConfig(r=rank, target_modules=LORA_TARGETS, random_seed=0)
    inject_adapter_in_model(settings, unet)
    return _factors(unet)


def frozen(unet: UNet2DConditionModel) -> Trained:
    """Nothing: the forward pass and the gradient of the input, which any training needs."""
    unet.requires_grad_(False)
    return Trained([])


def full(unet: UNet2DConditionModel) -> Trained:
    """Every attention weight, densely, in the UNet's own dtype."""
    unet.requires_grad_(False)
    weights = list(attention(unet).values())
    for weight in weights:
        weight.requires_grad_(True)
    return Trained(weights)


def _factors(unet: UNet2DConditionModel) -> Trained:
    cast_training_params(unet, torch.float32)
    parameters = [parameter for parameter in unet.parameters() if parameter.requires_grad]
    # In an fp32 UNet, as on a CPU, there is nothing to cast.
    casts = unet.dtype != torch.float32
    autocast = partial(torch.autocast, unet.device.type, torch.bfloat16, enabled=casts)
    return Trained(parameters, autocast=autocast)


METHODS: dict[str, Callable[[UNet2DConditionModel], Trained]] = {
    "ours": ours,
    "lora_r64": lora,
    "peft_shira": peft_shira,
    "frozen": frozen,
    "full": full,
}
