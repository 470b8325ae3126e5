"""The training loop, as a generator that its caller logs, saves and stops."""

import math
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from training.average import Average
from training.batches import Batches
from training.config import Config
from training.errors import TrainingError
from training.machine import Machine
from training.methods import Together, Trainable
from training.objective import Objective
from training.optimizers import create_optimizer, create_schedule
from training.passes import Warn, create_pass


@dataclass(frozen=True)
class StepResult:
    """One optimizer step: its number from 1, its loss, learning rate and duration in seconds."""

    step: int
    loss: float
    lr: float
    seconds: float


class Loop:
    """Optimizer, schedule and step counter around a method; `state` and `restore` resume it."""

    def __init__(
        self,
        config: Config,
        method: Trainable,
        objective: Objective,
        batches: Batches,
        machine: Machine,
        warn: Warn = warnings.warn,
    ) -> None:
        self.step = 0
        self._config = config
        self._method = method
        self._pass = create_pass(config, objective, method, machine, warn)
        self._batches = batches
        self._machine = machine
        self._values = method.parameters()
        groups: list[dict[str, Any]] = [{"params": self._values, "lr": config.lr}]
        if isinstance(method, Together):
            groups = method.groups(config.rates)
        self._optimizer = create_optimizer(config, groups)
        self._schedule = create_schedule(config, self._optimizer)
        self._scaler = machine.scaler()
        self._average = Average(self._values, config.ema) if config.ema else None

    def run(self) -> Iterator[StepResult]:
        """Do the steps that are left, one at each turn."""
        while self.step < self._config.steps:
            started = time.perf_counter()
            loss = self._gradients()
            lr = float(self._schedule.get_last_lr()[0])
            self._update()
            self.step += 1
            yield StepResult(self.step, loss, lr, time.perf_counter() - started)

    def close(self) -> None:
        """Let go of what is kept between steps; none can follow."""
        self._pass.close()

    def state(self) -> dict[str, Any]:
        """Return all that a resumed run needs; what it draws depends on the step alone."""
        average = {"average": self._average.state()} if self._average else {}
        return {
            "step": self.step,
            "method": self._method.state(),
            "optimizer": self._optimizer.state_dict(),
            "schedule": self._schedule.state_dict(),
            "scaler": self._scaler.state_dict(),
            **average,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`; the method takes its own part when it is created."""
        self.step = state["step"]
        self._optimizer.load_state_dict(state["optimizer"])
        self._schedule.load_state_dict(state["schedule"])
        self._scaler.load_state_dict(state.get("scaler", {}))
        if self._average:
            self._average.restore(state["average"])

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Have the UNet and the method hold the values' average for the block, if one is kept."""
        if self._average is None:
            yield
            return
        try:
            with self._average.shown():
                self._method.write()
                yield
        finally:
            self._method.write()

    def _gradients(self) -> float:
        """Bring this step's gradients to the values, clipped, and return the mean loss."""
        total = self._accumulate()
        self._scaler.unscale_(self._optimizer)
        norm = nn.utils.clip_grad_norm_(self._values, self._config.clip or math.inf)
        # The one time in a step that the host waits for the device.
        loss, length = torch.stack([total, norm]).tolist()
        self._check_finite("loss", loss)
        if not self._scaler.is_enabled():  # else the scaler looks after it
            self._check_finite("gradient's norm", length)
        return float(loss)

    def _accumulate(self) -> Tensor:
        """Add up the gradients of this step's batches and return their mean loss."""
        count = self._config.accumulation
        total = torch.zeros((), device=self._machine.device)
        factor = self._scaler.scale(torch.full_like(total, 1 / count))
        for index in range(self.step * count, (self.step + 1) * count):
            total += self._pass(self._batches.draw(index, self._machine), factor) / count
        self._pass.gather()
        self._machine.sum([total, *_gradients(self._values)])
        return total

    def _update(self) -> None:
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._schedule.step()
        self._optimizer.zero_grad()
        if self._average:
            self._average.update()
        self._method.write()

    def _check_finite(self, what: str, value: float) -> None:
        if not math.isfinite(value):
            raise TrainingError(
                f"The {what} became {value} at step {self.step + 1}. Set a lower lr than "
                f"{self._config.lr:g}, or a warmup; the last checkpoint is untouched."
            )


def _gradients(values: list[nn.Parameter]) -> list[Tensor]:
    return [value.grad for value in values if value.grad is not None]
