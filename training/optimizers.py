"""The optimizers and learning rate schedules of a run, all of them from libraries."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from diffusers.optimization import get_scheduler
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from training.config import Config


def create_optimizer(config: Config, groups: Sequence[Mapping[str, Any]]) -> Optimizer:
    """Return the configured optimizer of groups of values, each with its rate.

    Settings have been checked for its package.

    AdamW (https://arxiv.org/abs/1711.05101), with moments of 8 bits
    (https://arxiv.org/abs/2110.02861), Prodigy, which finds the rate itself and wants lr = 1
    (https://arxiv.org/abs/2306.06101), and Adafactor, whose rate is relative to the values' size
    and falls with the steps of itself (https://arxiv.org/abs/1804.04235).
    """
    # One launch for all values, on a GPU.
    on_gpu = groups[0]["params"][0].is_cuda
    fused = {"fused": True} if config.optimizer == "adamw" and on_gpu else {}
    return _kind(config.optimizer)(groups, lr=config.lr, weight_decay=config.weight_decay, **fused)


def _kind(name: str) -> Callable[..., Optimizer]:
    match name:
        case "adamw8bit":
            from bitsandbytes.optim import AdamW8bit

            return AdamW8bit
        case "prodigy":
            from prodigyopt import Prodigy

            return Prodigy
        case "adafactor":
            return torch.optim.Adafactor
    assert name == "adamw", name
    return torch.optim.AdamW


def create_schedule(config: Config, optimizer: Optimizer) -> LRScheduler:
    """Return the configured schedule of the optimizer's rate, a step at a time."""
    return get_scheduler(
        config.schedule,
        optimizer,
        num_warmup_steps=config.warmup,
        num_training_steps=config.steps,
        num_cycles=config.schedule_cycles,
    )


def state_bytes(name: str, value: Tensor) -> int:
    """Return what the optimizer keeps for a value of fp32 beside it, in bytes.

    Of small values bitsandbytes keeps the moments whole, and of large ones a scale for each 256.
    """
    count, fp32 = value.numel(), torch.float32.itemsize
    match name:
        case "adamw":
            return 2 * count * fp32
        case "adamw8bit":
            return 2 * (count * fp32 if count < 4096 else count + -(-count // 256) * fp32)
        case "prodigy":
            return 4 * count * fp32
    assert name == "adafactor", name
    if value.dim() < 2:
        return count * fp32
    return fp32 * (count // value.shape[-1] + count // value.shape[-2])
