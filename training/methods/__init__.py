"""The ways of adapting a UNet, behind one small interface."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from shira_diffusion.pipeline import target_weights
from training.config import Config
from training.methods.base import Gradients, Method
from training.methods.entries import choose_indices
from training.methods.lora import Lora, matching_rank
from training.methods.shira import Shira

__all__ = ["Gradients", "Method", "create"]


def create(
    config: Config, unet: nn.Module, gradients: Gradients, stored: Mapping[str, Any] | None
) -> Method:
    """Prepare the configured method on `unet`, as it was when `stored` was its state, if given."""
    unet.requires_grad_(False)
    weights = target_weights(unet, config.targets)
    method: Method
    if config.method == "lora":
        rank = config.rank
        if isinstance(rank, str):
            rank = matching_rank(weights.values(), config.density)
        method = Lora(unet, list(weights), rank, config.alpha or rank, seed=config.seed)
    else:
        indices = stored["indices"] if stored else choose_indices(config, weights, gradients)
        method = Shira(unet, indices)
    if stored:
        method.restore(stored)
    return method
