"""Sparse High Rank Adapters (https://arxiv.org/abs/2406.13175): some entries, trained in place."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from shira_diffusion import Adapter, AdapterInfo, SparseTuner, masks
from training.config import Config
from training.methods.base import Gradients


class Shira:
    """Trains the entries `indices` of the UNet's weights, given by parameter name."""

    def __init__(self, unet: nn.Module, indices: Mapping[str, Tensor]) -> None:
        self._tuner = SparseTuner(unet, indices)

    def parameters(self) -> list[nn.Parameter]:
        """Return the one flat vector of all trained entries."""
        return self._tuner.parameters()

    def write(self) -> None:
        """Scatter the vector into the live weights."""
        self._tuner.write()

    def state(self) -> dict[str, Any]:
        """Return the entries' places and values."""
        return {"indices": dict(self._tuner.indices), "tuner": self._tuner.state_dict()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take the entries' values; their places were given to the constructor."""
        self._tuner.load_state_dict(state["tuner"])

    def save(self, path: Path, info: AdapterInfo) -> None:
        """Write the native file."""
        deltas = {
            f"unet.{name}": delta.to("cpu", torch.float16)
            for name, delta in self._tuner.deltas().items()
        }
        Adapter(deltas, info).save(path)

    def facts(self) -> dict[str, str]:
        """Return how many values are trained."""
        return {"trained values": f"{self._tuner.values.numel():,}"}

    def close(self) -> None:
        """Put the base's values back."""
        self._tuner.close()


def choose_indices(
    config: Config, weights: Mapping[str, nn.Parameter], gradients: Gradients
) -> dict[str, Tensor]:
    """Return which entries of each weight to train, the same for the same settings.

    The adapter's name takes part in the seed: random masks of two adapters overlap by chance only.
    """
    scores = gradients(weights) if config.mask in ("grad", "snip") else {}
    return {
        name: masks.select(
            config.mask,
            weight.detach().cpu(),
            masks.count(weight.numel(), config.density),
            generator=masks.layer_generator(config.seed, f"{config.name}/{name}"),
            gradient=scores.get(name),
        )
        for name, weight in weights.items()
    }
