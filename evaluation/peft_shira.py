"""PEFT's own SHiRA as a method of the trainer, for comparison: PEFT trains, as its users have it.

Its random masks come from PEFT's default seed: with no seed given, adapters of one base have one
mask. Only linear layers are known to it.
"""

from collections.abc import Mapping
from typing import Any

import torch
from peft import ShiraConfig, inject_adapter_in_model
from peft.tuners.shira import ShiraLayer
from torch import Tensor, nn

from shira_diffusion import SparseDelta
from shira_diffusion.delta import index_dtype
from shira_diffusion.pipeline import target_weights
from training.config import Config
from training.methods import Gradients
from training.methods.ranks import lora_count, matching_rank

_ADAPTER = "default"


class PeftShira:
    """Trains what PEFT's `ShiraConfig` trains on the weights that the settings name."""

    def __init__(self, unet: nn.Module, modules: list[str], rank: int) -> None:
        self._unet = unet
        settings = ShiraConfig(r=rank, target_modules=modules)
        inject_adapter_in_model(settings, unet, adapter_name=_ADAPTER)
        self._layers = {
            name: module for name, module in unet.named_modules() if isinstance(module, ShiraLayer)
        }

    def parameters(self) -> list[nn.Parameter]:
        """Return the values of every layer."""
        return [layer.shira_weight[_ADAPTER] for layer in self._layers.values()]

    def gather(self) -> None:
        """Do nothing: the gradients are there."""

    def write(self) -> None:
        """Do nothing: PEFT's layers add the values themselves."""

    def state(self) -> dict[str, Any]:
        """Return the values by layer."""
        return {
            name: layer.shira_weight[_ADAPTER].detach().cpu().clone()
            for name, layer in self._layers.items()
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take the values; their places follow from PEFT's seed."""
        with torch.no_grad():
            for name, layer in self._layers.items():
                layer.shira_weight[_ADAPTER].copy_(state[name])

    def content(self) -> dict[str, SparseDelta]:
        """Return the exact change of each weight."""
        return {f"{name}.weight": _delta(one) for name, one in self._layers.items()}

    def facts(self) -> dict[str, str]:
        """Return how many values are trained."""
        return {"trained values": f"{sum(value.numel() for value in self.parameters()):,}"}

    def close(self) -> None:
        """Put the plain layers back."""
        for name, layer in self._layers.items():
            self._unet.set_submodule(name, layer.get_base_layer())
        del self._unet.peft_config


def create(
    config: Config, unet: nn.Module, _: Gradients, stored: Mapping[str, Any] | None
) -> PeftShira:
    """Prepare PEFT's SHiRA of the rank whose number of values is nearest to the density's."""
    unet.requires_grad_(False)
    weights = target_weights(unet, config.targets, config.blocks)
    rank = matching_rank(weights.values(), config.density, lora_count)
    method = PeftShira(unet, [name.removesuffix(".weight") for name in weights], rank)
    if stored:
        method.restore(stored)
    return method


def _delta(layer: ShiraLayer) -> SparseDelta:
    change: Tensor = layer.get_delta_weight(_ADAPTER).detach().coalesce()
    rows, columns = change.indices()
    shape = (change.shape[0], change.shape[1])
    places = (rows * shape[1] + columns).to(index_dtype(shape[0] * shape[1]))
    return SparseDelta(places, change.values(), shape)
