"""Sparse High Rank Adapters (https://arxiv.org/abs/2406.13175): some entries, trained in place."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from shira_diffusion import SparseDelta, SparseTuner


class Shira:
    """Trains the entries `indices` of the UNet's weights, given by parameter name."""

    def __init__(self, unet: nn.Module, indices: Mapping[str, Tensor]) -> None:
        self._tuner = SparseTuner(unet, indices)

    def parameters(self) -> list[nn.Parameter]:
        """Return the one flat vector of all trained entries."""
        return self._tuner.parameters()

    def gather(self) -> None:
        """Do nothing: the tuner has put the gradients there."""

    def write(self) -> None:
        """Scatter the vector into the live weights."""
        self._tuner.write()

    def state(self) -> dict[str, Any]:
        """Return the entries' places and values."""
        return {"indices": dict(self._tuner.indices), "tuner": self._tuner.state_dict()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take the entries' values; their places were given to the constructor."""
        self._tuner.load_state_dict(state["tuner"])

    def content(self) -> dict[str, SparseDelta]:
        """Return the entries' changes."""
        return self._tuner.deltas()

    def facts(self) -> dict[str, str]:
        """Return how many values are trained."""
        return {"trained values": f"{self._tuner.values.numel():,}"}

    def close(self) -> None:
        """Put the base's values back."""
        self._tuner.close()
