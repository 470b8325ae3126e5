"""Gradients of whole weights, for the masks that score entries by them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def summed_gradients(
    weights: Mapping[str, nn.Parameter], device: torch.device | str = "cpu"
) -> Iterator[dict[str, Tensor]]:
    """Add up the gradients of every backward pass in the block, fp32, by name, on `device`.

    Each gradient is added as soon as it is there and then freed, so that of all weights only the
    sums are held. Weights get their `requires_grad` flag back; other weights are not touched.
    """
    totals = {
        name: torch.zeros(weight.shape, dtype=torch.float32, device=device)
        for name, weight in weights.items()
    }
    flags = {name: weight.requires_grad for name, weight in weights.items()}

    def add(name: str, weight: Tensor) -> None:
        assert weight.grad is not None
        totals[name] += weight.grad.to(device, torch.float32)
        weight.grad = None

    hooks = []
    for name, weight in weights.items():
        weight.requires_grad_(True)
        hooks.append(
            weight.register_post_accumulate_grad_hook(lambda held, name=name: add(name, held))
        )
    try:
        yield totals
    finally:
        for hook in hooks:
            hook.remove()
        for name, weight in weights.items():
            weight.grad = None
            weight.requires_grad_(flags[name])
