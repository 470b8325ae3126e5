"""Which parts of the base are on the device: each only while it is needed."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from diffusers import StableDiffusionXLPipeline
from torch import nn

from training.machine import Machine
from training.texts import TEXT_ENCODERS


@contextmanager
def lent(machine: Machine, *modules: nn.Module) -> Iterator[None]:
    """Have `modules` on the machine's device for the block, afterwards where each was before."""
    former = [next(module.parameters()).device for module in modules]
    moved = any(device != machine.device for device in former)
    try:
        for module in modules:
            module.to(machine.device)
        yield
    finally:
        for module, device in zip(modules, former, strict=True):
            module.to(device)
        if moved and machine.device.type != "cpu":
            torch.get_device_module(machine.device).empty_cache()


def text_encoders(pipe: StableDiffusionXLPipeline) -> list[nn.Module]:
    """Return both text encoders."""
    return [getattr(pipe, component) for component in TEXT_ENCODERS]
