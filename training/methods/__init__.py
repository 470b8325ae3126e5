"""The ways of adapting a UNet, behind one small interface."""

from collections.abc import Callable, Mapping
from typing import Any

from peft import LoraConfig
from torch import Tensor, nn

from shira_diffusion.pipeline import target_weights
from training.config import Config
from training.methods.base import Gradients, Method
from training.methods.entries import choose_indices
from training.methods.lora import Lora
from training.methods.ranks import Count, dora_count, lora_count, matching_rank, symlora_count
from training.methods.shira import Shira
from training.methods.shira_dora import ShiraDora
from training.methods.symlora import SymLora

__all__ = ["Create", "Gradients", "Method", "create"]

Weights = dict[str, nn.Parameter]
Indices = Callable[[], dict[str, Tensor]]
Create = Callable[[Config, nn.Module, Gradients, Mapping[str, Any] | None], Method]
"""Prepares a method on a UNet, as `create` does."""


def create(
    config: Config, unet: nn.Module, gradients: Gradients, stored: Mapping[str, Any] | None
) -> Method:
    """Prepare the configured method on `unet`, as it was when `stored` was its state, if given."""
    unet.requires_grad_(False)
    weights = target_weights(unet, config.targets)

    def indices() -> dict[str, Tensor]:
        return stored["indices"] if stored else choose_indices(config, weights, gradients)

    method = _build(config, unet, weights, indices)
    if stored:
        method.restore(stored)
    return method


def _build(config: Config, unet: nn.Module, weights: Weights, indices: Indices) -> Method:
    seed = config.seed
    match config.method:
        case "shira":
            return Shira(unet, indices())
        case "lora":
            return Lora(unet, _peft_settings(config, weights, lora_count), seed=seed)
        case "dora":
            settings = _peft_settings(config, weights, dora_count, use_dora=True)
            return Lora(unet, settings, seed=seed)
        case "symlora":
            return SymLora(unet, weights, _rank(config, weights, symlora_count), seed=seed)
    assert config.method == "shira-dora", config.method
    assert isinstance(config.rank, int), "settings that leave it open are refused"
    return ShiraDora(unet, indices(), config.rank, config.alpha or config.rank, seed=seed)


def _rank(config: Config, weights: Weights, count: Count) -> int:
    if isinstance(config.rank, int):
        return config.rank
    return matching_rank(weights.values(), config.density, count)


def _peft_settings(config: Config, weights: Weights, count: Count, **more: Any) -> LoraConfig:
    rank = _rank(config, weights, count)
    modules = [name.removesuffix(".weight") for name in weights]
    return LoraConfig(
        r=rank,
        lora_alpha=config.alpha or rank,
        target_modules=modules,
        init_lora_weights=True,
        **more,
    )
