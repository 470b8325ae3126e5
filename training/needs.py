"""What memory a run's settings need, and which of them to change where there is too little."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import torch
from diffusers import StableDiffusionXLPipeline
from torch import Tensor, nn

from training import methods
from training.config import MIXED, Config
from training.images import Size
from training.machine import Machine
from training.memory import Footprint, footprint
from training.objective import Objective
from training.prepare import side_of
from training.recompute import keep_little

_MIB = 2**20


def batch_of(config: Config, machine: Machine) -> int:
    """Return how many pictures each process has in a batch, class images included."""
    count = config.batch + (config.prior_batch if config.keeps_prior else 0)
    return -(-count // machine.world)


def needed(
    config: Config, pipe: StableDiffusionXLPipeline, machine: Machine, sizes: Sequence[Size]
) -> tuple[Footprint, int]:
    """Return the memory for pictures of `sizes`, and how many values are trained.

    All of `pipe` is on the CPU, and is left as it was.
    """
    side = side_of(config, pipe)
    largest = max(sizes or [(side, side)], key=math.prod)
    on_cpu = Machine(torch.device("cpu"), machine.dtype)
    objective = Objective.of(pipe, on_cpu, mixed=config.method in MIXED)
    if config.gradient_checkpointing:
        keep_little(pipe.unet)
    method = methods.create_all(config, pipe, _no_gradients, None)
    try:
        count = batch_of(config, machine)
        with torch.compiler.set_stance("force_eager"):
            found = footprint(pipe, method, objective, config, count=count, size=largest)
        return found, sum(values.numel() for values in method.parameters())
    finally:
        method.close()
        pipe.unet.disable_gradient_checkpointing()


def remedies(config: Config) -> dict[str, Config]:
    """Return what to set where memory is short, and the settings that this makes."""
    found = {}
    if config.batch > 1:
        half, twice = config.batch // 2, config.accumulation * 2
        found[f"batch={half} accumulation={twice}"] = dataclasses.replace(
            config, batch=half, accumulation=twice
        )
    if config.keeps_prior and config.prior_batch > 1:
        fewer = config.prior_batch // 2
        found[f"prior_batch={fewer}"] = dataclasses.replace(config, prior_batch=fewer)
    if not config.gradient_checkpointing:
        found["gradient_checkpointing=true"] = dataclasses.replace(
            config, gradient_checkpointing=True
        )
    return found


def advice(
    config: Config, pipe: StableDiffusionXLPipeline, machine: Machine, sizes: Sequence[Size]
) -> str:
    """Say what a run that ran out of memory needs, and what it would need otherwise."""
    pipe.to("cpu")

    def about(changed: Config) -> str:
        try:
            found, _ = needed(changed, pipe, machine, sizes)
        except Exception:  # noqa: BLE001
            # Whatever state the base was left in: what to change can be said without numbers.
            return "less"
        return f"about {mib(found.training)}"

    now, has = about(config), total(machine.device)
    there = f", {machine.device} has {mib(has)}" if has else ""
    facts = f" (a step needs {now}{there})" if now != "less" else there
    options = [f"{words} ({about(changed)})" for words, changed in remedies(config).items()]
    return (
        f"The device ran out of memory{facts}. "
        f"Set {', or '.join([*options, 'a lower resolution'])}."
    )


def total(device: torch.device) -> int:
    """Return all memory of a GPU in bytes; of the machine's own nothing portable is known: 0."""
    return torch.cuda.mem_get_info(device)[1] if device.type == "cuda" else 0


def mib(count: int) -> str:
    """Return bytes as text."""
    return f"{count / _MIB:,.0f} MiB"


def _no_gradients(weights: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """Stand in for the calibration: how many entries are trained does not depend on it."""
    return {name: torch.zeros(()).expand(weight.shape) for name, weight in weights.items()}
