"""Training by SparseTuner, and its slow reference: dense training with gradients times a mask."""

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from shira_diffusion.tune import SparseTuner

Loss = Callable[[nn.Module, int], Tensor]
"""The loss of a module on the batch of a number."""
MICRO = 2
"""Batches whose gradients make one step."""


def train_sparse(
    module: nn.Module,
    tuner: SparseTuner,
    optimizer: torch.optim.Optimizer,
    loss: Loss,
    steps: Iterable[int],
) -> None:
    for step in steps:
        for micro in range(MICRO):
            (loss(module, MICRO * step + micro) / MICRO).backward()
        optimizer.step()
        optimizer.zero_grad()
        tuner.write()


def train_dense(
    module: nn.Module,
    indices: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
    loss: Loss,
    steps: Iterable[int],
) -> None:
    masks = {name: mask(module.get_parameter(name), some) for name, some in indices.items()}
    for step in steps:
        for micro in range(MICRO):
            (loss(module, MICRO * step + micro) / MICRO).backward()
        for name, ones in masks.items():
            gradient = module.get_parameter(name).grad
            assert gradient is not None
            gradient.mul_(ones)
        optimizer.step()
        optimizer.zero_grad()


def mask(weight: Tensor, indices: Tensor) -> Tensor:
    """Ones at the entries, in the weight's shape."""
    ones = torch.zeros(weight.numel(), dtype=weight.dtype, device=weight.device)
    ones[indices.long().to(weight.device)] = 1.0
    return ones.reshape(weight.shape)


def gradient_at(module: nn.Module, indices: Mapping[str, Tensor]) -> Tensor:
    """The dense gradients at the entries, in the order of the names."""
    parts = []
    for name in sorted(indices):
        gradient = module.get_parameter(name).grad
        assert gradient is not None
        parts.append(gradient.to_dense().flatten()[indices[name].long()].float())
    return torch.cat(parts)
