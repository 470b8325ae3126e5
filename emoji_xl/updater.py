"""One optimizer step at a time: rate by the clock, clipped gradients, a running average."""

from pathlib import Path
from typing import Generic, TypeVar

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from emoji_xl import ema
from emoji_xl.clock import Clock, learning_rate

Module = TypeVar("Module", bound=nn.Module)
MOMENTS = ("exp_avg", "exp_avg_sq")


class Updater(Generic[Module]):
    """AdamW over all of a module, with an exponential average of its weights beside it."""

    def __init__(
        self,
        module: Module,
        clock: Clock,
        *,
        peak: float,
        decay: float,
        warmup: int = 300,
        weight_decay: float = 0.01,
    ) -> None:
        self.module, self.clock = module, clock
        self.average = ema.shadow_of(module)
        self.step = 0
        self._peak, self._decay, self._warmup = peak, decay, warmup
        self._first = 0
        self._optimizer = torch.optim.AdamW(
            module.parameters(),
            lr=peak,
            betas=(0.9, 0.99),
            weight_decay=weight_decay,
            fused=next(module.parameters()).is_cuda,
        )

    @property
    def running(self) -> bool:
        """Whether time is left; one step is taken in any case."""
        return self.clock.progress < 1 or self.step == self._first

    def update(self, loss: Tensor) -> None:
        """Step down the gradient of `loss`, a scalar."""
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate(
                self._peak, self.step - self._first, self.clock.progress, warmup=self._warmup
            )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.module.parameters(), 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad()
        ema.update(self.average, self.module, step=self.step, decay=self._decay)
        self.step += 1

    def save(self, file: Path) -> None:
        """Write weights, average, AdamW's moments, step and time in one safetensors file."""
        tensors = {f"weights.{n}": t for n, t in self.module.state_dict().items()}
        tensors |= {f"average.{n}": t for n, t in self.average.state_dict().items()}
        for name, parameter in self.module.named_parameters():
            state = self._optimizer.state.get(parameter, {})
            tensors |= {f"{m}.{name}": state[m] for m in MOMENTS if m in state}
        fresh = file.with_name(file.name + ".new")
        save_file(
            # Cloned: the format refuses tensors that share memory.
            {n: t.detach().cpu().contiguous().clone() for n, t in tensors.items()},
            fresh,
            metadata={"step": str(self.step), "seconds": str(self.clock.seconds)},
        )
        fresh.replace(file)

    def restore(self, file: Path) -> None:
        """Go on from what `save` wrote; the rate warms up anew.

        Moments that the file lacks, left out to make it small, start at zero.
        """
        tensors = load_file(file)
        self.module.load_state_dict(_under("weights", tensors))
        self.average.load_state_dict(_under("average", tensors))
        self.step = self._first = int(_metadata(file)["step"])
        moments = {name: _under(name, tensors) for name in MOMENTS}
        state = {
            place: {"step": torch.tensor(float(self.step))} | {m: moments[m][name] for m in MOMENTS}
            for place, (name, _) in enumerate(self.module.named_parameters())
            if all(name in moments[m] for m in MOMENTS)
        }
        groups = self._optimizer.state_dict()["param_groups"]
        self._optimizer.load_state_dict({"state": state, "param_groups": groups})


def seconds_of(file: Path) -> float:
    """Seconds of training that a file written by `Updater.save` has behind it."""
    return float(_metadata(file)["seconds"])


def _metadata(file: Path) -> dict[str, str]:
    with safe_open(file, "pt") as opened:
        metadata: dict[str, str] = opened.metadata()
    return metadata


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        name.removeprefix(f"{prefix}."): tensor
        for name, tensor in tensors.items()
        if name.startswith(f"{prefix}.")
    }
