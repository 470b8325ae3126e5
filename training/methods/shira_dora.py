"""SHiRA over a high-rank DoRA, as arXiv 2406.13175 does for its SHiRA-WM-DoRA."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from shira_diffusion import SparseDelta, SparseTuner, masks


class ShiraDora:
    """Trains a DoRA of each weight, of which the UNet sees the entries `indices` alone.

    With D = magnitude * (W + B A alpha / rank) / |W + B A alpha / rank|, norms and magnitudes by
    row (https://arxiv.org/abs/2402.09353, the norm taken as constant by the gradient as in its
    section 4.3), the weight is D at the masked entries and the base W elsewhere, while training and
    after it alike. So the trained values are the DoRA's, more than the entries that change, and
    the file is a native sparse adapter of those entries. Magnitudes and factors start where D = W.

    The UNet's dense weights are trained in place, see `SparseTuner`; no layer is wrapped. Each step
    holds the product of one weight at a time.
    """

    def __init__(
        self,
        unet: nn.Module,
        indices: Mapping[str, Tensor],
        rank: int,
        alpha: float,
        *,
        seed: int,
    ) -> None:
        weights = dict(unet.named_parameters())
        self._rank = rank
        self._alpha = alpha
        self._tuner = SparseTuner(unet, indices)
        self._layers = {
            name: _Decomposition.start(
                weights[name],
                places,
                rank,
                alpha / rank,
                generator=masks.layer_generator(seed, name),
            )
            for name, places in self._tuner.indices.items()
        }

    def parameters(self) -> list[nn.Parameter]:
        """Return all magnitudes and factors."""
        return [part for layer in self._layers.values() for part in layer.parts]

    def gather(self) -> None:
        """Hand the entries' gradients on to the magnitudes and factors that made them."""
        flat = self._tuner.hold_gradient()
        counts = [layer.base.numel() for layer in self._layers.values()]
        try:
            for layer, gradient in zip(self._layers.values(), flat.split(counts), strict=True):
                layer.entries().backward(gradient)
        finally:
            self._tuner.values.grad = None  # also for want of memory: the next pass adds to it

    @torch.no_grad()
    def write(self) -> None:
        """Compute the entries and scatter them into the live weights."""
        self._tuner.values.copy_(torch.cat([layer.entries() for layer in self._layers.values()]))
        self._tuner.write()

    def state(self) -> dict[str, Any]:
        """Return the entries' places, magnitudes and factors."""
        values = [part.detach().cpu().clone() for part in self.parameters()]
        return {"indices": dict(self._tuner.indices), "values": values}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take magnitudes and factors; the entries' places were given to the constructor."""
        with torch.no_grad():
            for part, value in zip(self.parameters(), state["values"], strict=True):
                part.copy_(value)
        self.write()

    def content(self) -> dict[str, SparseDelta]:
        """Return the entries' changes."""
        return self._tuner.deltas()

    def facts(self) -> dict[str, str]:
        """Return rank and alpha, how many values are trained and how many entries they change."""
        count = sum(part.numel() for part in self.parameters())
        return {
            "rank": str(self._rank),
            "alpha": f"{self._alpha:g}",
            "trained values": f"{count:,}",
            "changed entries": f"{self._tuner.values.numel():,}",
        }

    def close(self) -> None:
        """Put the base's values back."""
        self._tuner.close()


@dataclass(frozen=True, eq=False)
class _Decomposition:
    """The DoRA of one weight, fp32, and which entries (k,) of it are used."""

    weight: nn.Parameter
    indices: Tensor
    base: Tensor  # (k,), the base's values of the entries
    magnitude: nn.Parameter  # (out,)
    down: nn.Parameter  # A, (rank, in)
    up: nn.Parameter  # B, (out, rank)
    scale: float

    @classmethod
    def start(
        cls,
        weight: nn.Parameter,
        indices: Tensor,
        rank: int,
        scale: float,
        *,
        generator: torch.Generator,
    ) -> "_Decomposition":
        matrix = weight.detach().float().flatten(1)
        places = indices.to(weight.device).long()
        down = torch.empty(rank, matrix.shape[1])
        nn.init.kaiming_uniform_(down, a=math.sqrt(5), generator=generator)
        return cls(
            weight,
            places,
            matrix.flatten()[places],
            nn.Parameter(_row_norms(matrix)),
            nn.Parameter(down.to(weight.device)),
            nn.Parameter(matrix.new_zeros(len(matrix), rank)),
            scale,
        )

    @property
    def parts(self) -> tuple[nn.Parameter, nn.Parameter, nn.Parameter]:
        return self.magnitude, self.down, self.up

    def entries(self) -> Tensor:
        """Return D's values (k,) at the used entries, with their way back to the parts."""
        live = self.weight.detach().float()
        matrix = live.flatten().index_copy(0, self.indices, self.base).reshape(len(live), -1)
        direction = matrix + self.scale * self.up @ self.down
        growth = self.magnitude / _row_norms(direction.detach())
        rows = self.indices // matrix.shape[1]
        return growth[rows] * direction.flatten()[self.indices]


def _row_norms(matrix: Tensor) -> Tensor:
    """Return the length (rows,) of each row, not below the least number to divide a row of 0 by."""
    return matrix.norm(dim=1).clamp(min=torch.finfo(matrix.dtype).tiny)
