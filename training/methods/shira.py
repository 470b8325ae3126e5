"""Sparse High Rank Adapters (https://arxiv.org/abs/2406.13175): some entries, trained in place."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from shira_diffusion import Adapter, AdapterInfo, SparseTuner


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
