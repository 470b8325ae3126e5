"""Where a run computes, and what it shares with its sister processes: all that accelerate does."""

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from accelerate import PartialState
from accelerate.utils import reduce
from torch import Tensor

from training.errors import ConfigError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""What the frozen base may be kept and computed in."""


@dataclass(frozen=True)
class Machine:
    """One process of a run: its device, the dtype of the frozen base, its place among `world`."""

    device: torch.device
    dtype: torch.dtype
    rank: int = 0
    world: int = 1

    @classmethod
    def detect(cls, device: str = "auto", precision: str = "auto") -> "Machine":
        """Take the named or the best device; `accelerate launch` makes several processes."""
        state = PartialState(cpu=device == "cpu")
        try:
            place = torch.device(state.device if device == "auto" else device)
            torch.empty(0, device=place)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            raise ConfigError(
                f"device = {device} cannot be used here: {reason}. Set device=auto or device=cpu."
            ) from error
        auto = "bf16" if place.type == "cuda" else "fp32"
        dtype = DTYPES[auto if precision == "auto" else precision]
        return cls(place, dtype, state.process_index, state.num_processes)

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that writes files."""
        return self.rank == 0

    def alone(self) -> "Machine":
        """Return the same device without sister processes."""
        return dataclasses.replace(self, rank=0, world=1)

    def autocast(self) -> AbstractContextManager[object]:
        """Compute in the base's dtype where that is a half one; trained values stay fp32."""
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)

    def scaler(self) -> torch.amp.GradScaler:
        """Return what makes losses large enough for fp16's gradients; in other dtypes idle."""
        return torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)

    def bring(self, tensor: Tensor) -> Tensor:
        """Return a tensor of the CPU on the device, without waiting for it where that can be."""
        if self.device.type != "cuda":
            return tensor.to(self.device)
        return tensor.pin_memory().to(self.device, non_blocking=True)

    def share(self, count: int) -> slice:
        """Return which of a batch's `count` examples this process works on."""
        return slice(self.rank * count // self.world, (self.rank + 1) * count // self.world)

    def sum(self, tensors: Sequence[Tensor]) -> None:
        """Add the tensors of all processes, in place in each of them, in one go."""
        if self.world == 1:
            return
        joined = reduce(torch.cat([tensor.flatten() for tensor in tensors]), "sum")
        parts = joined.split([tensor.numel() for tensor in tensors])
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view_as(tensor))

    def peak_memory(self) -> dict[str, int]:
        """Return the most bytes held since the last call, by tensors and in all, {} without CUDA.

        The next call counts from here on.
        """
        if self.device.type != "cuda":
            return {}
        peak = {
            "allocated": torch.cuda.max_memory_allocated(self.device),
            "reserved": torch.cuda.max_memory_reserved(self.device),
        }
        torch.cuda.reset_peak_memory_stats(self.device)
        return peak

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """Let the main process do the block alone, the others after it."""
        if self.world == 1:
            yield
            return
        with PartialState().main_process_first():
            yield
