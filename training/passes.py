"""A batch's forward and backward pass: launched operation by operation, or as one CUDA graph."""

import gc
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from shira_diffusion.captured import CapturedPass, HeldGradients
from shira_diffusion.errors import CaptureError
from training.batches import Batch
from training.config import Config
from training.machine import Machine
from training.methods import Trainable
from training.objective import Objective

Warn = Callable[[str], None]
"""Tells of something that does not end the run."""


class Pass(Protocol):
    """Brings the gradients of batches to a method's values."""

    def __call__(self, batch: Batch, factor: Tensor) -> Tensor:
        """Add the gradient of the batch's loss times a factor (); return the loss (), in fp32."""

    def gather(self) -> None:
        """Bring to the values what gradients are not there yet, after a step's batches."""

    def close(self) -> None:
        """Let go of what is kept between batches; nothing is called after it."""


class Launched:
    """Launches every operation, as PyTorch does."""

    def __init__(self, objective: Objective, method: Trainable) -> None:
        self._objective = objective
        self._method = method

    def __call__(self, batch: Batch, factor: Tensor) -> Tensor:
        """Do one pass."""
        loss = self._objective.loss(batch)
        (loss * factor).backward()
        return loss.detach()

    def gather(self) -> None:
        """Have the method gather."""
        self._method.gather()

    def close(self) -> None:
        """Do nothing: nothing is kept."""


class Graphed:
    """Replays a CUDA graph, captured when the first batch of a shape comes; it gathers, too.

    Where capturing fails, or has not the memory, there is a warning, and all goes on as `Launched`.
    """

    def __init__(self, objective: Objective, method: Trainable, warn: Warn) -> None:
        self._objective = objective
        self._method = method
        self._launched = Launched(objective, method)
        self._gradients = HeldGradients(method.parameters())
        self._warn = warn
        self._captured: dict[tuple[tuple[str, torch.Size], ...], CapturedPass] = {}
        self._failed = False

    def __call__(self, batch: Batch, factor: Tensor) -> Tensor:
        """Do one pass."""
        if self._failed:
            return self._launched(batch, factor)
        inputs = {**batch.tensors(), "factor": factor}
        try:
            captured = self._of_shape(inputs)
        except CaptureError as error:
            reason = str(error)
        except torch.OutOfMemoryError:
            reason = "There is not the memory to capture batches of one more shape"
        else:
            return captured(**inputs) / factor
        # Not above: what an error has come by holds on to the memory that it wanted.
        self._give_up(reason)
        return self._launched(batch, factor)

    def gather(self) -> None:
        """Gather what the graphs have not."""
        if self._failed:
            self._launched.gather()

    def close(self) -> None:
        """Let go of the graphs and their memory at once: they hold what holds them."""
        self._captured.clear()

    def _give_up(self, reason: str) -> None:
        self._warn(f"{reason}. This run goes on without cuda_graphs.")
        self._failed = True
        self._captured.clear()
        gc.collect()
        torch.cuda.empty_cache()

    def _of_shape(self, inputs: dict[str, Tensor]) -> CapturedPass:
        shape = tuple((name, tensor.shape) for name, tensor in inputs.items())
        if shape not in self._captured:
            self._captured[shape] = CapturedPass(
                self._gradients,
                self._scaled_loss,
                inputs,
                then=self._method.gather,
                beside=next(iter(self._captured.values()), None),
            )
        return self._captured[shape]

    def _scaled_loss(self, factor: Tensor, **tensors: Tensor) -> Tensor:
        return self._objective.loss(Batch(**tensors)) * factor  # type: ignore[arg-type]


def create_pass(
    config: Config, objective: Objective, method: Trainable, machine: Machine, warn: Warn
) -> Pass:
    """Return the pass that the settings ask for and the device can do."""
    if remark := without_graphs(config, machine):
        warn(remark)
    elif config.cuda_graphs:
        return Graphed(objective, method, warn)
    return Launched(objective, method)


def without_graphs(config: Config, machine: Machine) -> str:
    """Say why graphs that are asked for cannot be had, "" if they can or nobody asks."""
    if config.cuda_graphs and machine.device.type != "cuda":
        return f"cuda_graphs needs CUDA; this run is on {machine.device} and goes without."
    return ""
