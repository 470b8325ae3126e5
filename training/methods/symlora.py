"""Symmetric low-rank adapters (https://arxiv.org/abs/2504.03719): Q diag(L) Q' beside a weight."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig
from torch import Tensor, nn
from torch.nn import functional as F

from shira_diffusion import masks
from training.methods.content import LowRank
from training.methods.ranks import symlora_count


class SymLora:
    """Trains the change Q diag(L) Q' of the named weights, about half of LoRA's values.

    The paper knows square weights only. A rectangular one (out, in), as cross-attention's keys and
    values, gets the upper left corner of the symmetric matrix of its longer side: Q is (max(out,
    in), r), and the change Q[:out] diag(L) Q[:in]'. Both sides share what they can share, a square
    weight is the paper's own case, and the rank stays r. Convolutions are seen as (out, in * kh *
    kw). Q starts with columns of length 1 or so and L at 0, so L are about the eigenvalues of a
    change that starts at 0.

    The file is an exact LoRA, A = diag(L) Q[:in]' and B = Q[:out], with alpha = rank.
    """

    def __init__(
        self, unet: nn.Module, weights: Mapping[str, nn.Parameter], rank: int, *, seed: int
    ) -> None:
        modules = dict(unet.named_modules())
        self._rank = rank
        self._count = sum(symlora_count(weight, rank) for weight in weights.values())
        self._layers = {
            name.removesuffix(".weight"): _Spectrum.start(weight, rank, seed=seed, name=name)
            for name, weight in weights.items()
        }
        self._hooks = [
            modules[name].register_forward_hook(layer.add) for name, layer in self._layers.items()
        ]

    def parameters(self) -> list[nn.Parameter]:
        """Return all Q and L."""
        return [part for layer in self._layers.values() for part in (layer.q, layer.eigenvalues)]

    def gather(self) -> None:
        """Do nothing: the gradients are there."""

    def write(self) -> None:
        """Do nothing: the UNet's layers read Q and L themselves."""

    def state(self) -> dict[str, Tensor]:
        """Return Q and L by layer."""
        return {name: part.detach().cpu().clone() for name, part in self._parts().items()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take Q and L."""
        with torch.no_grad():
            for name, part in self._parts().items():
                part.copy_(state[name])

    def content(self) -> LowRank:
        """Return the LoRA that `pipe.load_lora_weights` reads."""
        tensors = {}
        for name, layer in self._layers.items():
            down, up = layer.factors()
            tensors[f"{name}.lora_A.weight"] = down.detach().cpu()
            tensors[f"{name}.lora_B.weight"] = up.detach().cpu()
        settings = LoraConfig(
            r=self._rank, lora_alpha=self._rank, target_modules=list(self._layers)
        )
        return LowRank(tensors, settings)

    def facts(self) -> dict[str, str]:
        """Return the rank, and how many values it came to."""
        return {"rank": str(self._rank), "trained values": f"{self._count:,}"}

    def close(self) -> None:
        """Take the changes away again."""
        for hook in self._hooks:
            hook.remove()

    def _parts(self) -> dict[str, nn.Parameter]:
        parts = {}
        for name, layer in self._layers.items():
            parts[f"{name}.q"] = layer.q
            parts[f"{name}.eigenvalues"] = layer.eigenvalues
        return parts


@dataclass(frozen=True, eq=False)
class _Spectrum:
    """Q (longer side, rank) and L (rank,), fp32, of one weight of the shape `shape`."""

    q: nn.Parameter
    eigenvalues: nn.Parameter
    shape: torch.Size

    @classmethod
    def start(cls, weight: Tensor, rank: int, *, seed: int, name: str) -> "_Spectrum":
        side = max(weight.shape[0], weight[0].numel())
        generator = masks.layer_generator(seed, name)
        q = torch.randn(side, rank, generator=generator) / side**0.5
        place = weight.device
        return cls(
            nn.Parameter(q.to(place)), nn.Parameter(torch.zeros(rank, device=place)), weight.shape
        )

    def factors(self) -> tuple[Tensor, Tensor]:
        """Return A (rank, in, ...) and B (out, rank, ...), shaped as a LoRA's."""
        out, rest = self.shape[0], self.shape[1:]
        down = (self.q[: rest.numel()] * self.eigenvalues).T.reshape(-1, *rest)
        up = self.q[:out].reshape(out, -1, *[1] * (len(rest) - 1))
        return down, up

    def add(self, module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        """Add the change's part to what the layer itself gives; a forward hook."""
        (x,) = inputs
        down, up = (factor.to(x.dtype) for factor in self.factors())
        if isinstance(module, nn.Conv2d):
            low = F.conv2d(x, down, None, module.stride, module.padding, module.dilation)
            return output + F.conv2d(low, up)
        return output + F.linear(F.linear(x, down), up)
