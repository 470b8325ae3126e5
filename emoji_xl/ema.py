"""Exponential moving average of a module's weights."""

import copy
from typing import TypeVar

import torch
from torch import nn

Module = TypeVar("Module", bound=nn.Module)


def shadow_of(module: Module) -> Module:
    """Copy `module` as the start of its average."""
    return copy.deepcopy(module).requires_grad_(False).eval()


@torch.no_grad()
def update(shadow: nn.Module, module: nn.Module, *, step: int, decay: float) -> None:
    """Move `shadow` towards `module`; the decay grows with the step, to forget the start.

    The warm-up is min(decay, (1 + step) / (10 + step)), as in TensorFlow's moving average. Buffers,
    the running statistics of batch norm among them, are averages already and are copied.
    """
    weight = 1 - min(decay, (1 + step) / (10 + step))
    torch._foreach_lerp_(list(shadow.parameters()), list(module.parameters()), weight)
    for ours, theirs in zip(shadow.buffers(), module.buffers(), strict=True):
        ours.copy_(theirs)
