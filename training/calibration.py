"""Gradients of whole weights on a few batches, for the masks that score entries by them."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from training.batches import Batches
from training.machine import Machine
from training.objective import Objective


def gradients(
    weights: Mapping[str, nn.Parameter],
    objective: Objective,
    batches: Batches,
    count: int,
    machine: Machine,
) -> dict[str, Tensor]:
    """Return the summed gradients of `weights` over `count` calibration batches, fp32 on the CPU.

    Each weight's gradient leaves the device as soon as it is there, so only one is held at a time.
    Every process of a run does all of it: the masks must be the same in all.
    """
    totals = {name: torch.zeros(weight.shape) for name, weight in weights.items()}

    def gather(name: str, weight: Tensor) -> None:
        assert weight.grad is not None
        totals[name] += weight.grad.to("cpu", torch.float32)
        weight.grad = None

    hooks = []
    for name, weight in weights.items():
        weight.requires_grad_(True)
        hooks.append(
            weight.register_post_accumulate_grad_hook(
                lambda weight, name=name: gather(name, weight)
            )
        )
    try:
        for index in range(count):
            objective.loss(batches.draw(index, machine.alone(), purpose="calibration")).backward()
    finally:
        for hook, weight in zip(hooks, weights.values(), strict=True):
            hook.remove()
            weight.requires_grad_(False)
    return totals
