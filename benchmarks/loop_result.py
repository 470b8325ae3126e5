"""What one process of the loop benchmark hands back."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import torch


@dataclass(frozen=True)
class LoopResult:
    """The end of each step in seconds, and the most memory of the steps after the warm-up, in GB.

    `allocated` is what tensors held, `reserved` what PyTorch took from the GPU for it; None on CPU.
    """

    ends: Sequence[float]
    allocated: float | None = None
    reserved: float | None = None

    def seconds(self, warm_up: int) -> list[float]:
        """How long each step took, without the first `warm_up`."""
        return [after - before for before, after in pairwise(self.ends)][warm_up:]

    def write(self, path: Path) -> None:
        """Keep it as JSON."""
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> LoopResult:
        """Take back what `write` kept."""
        return cls(**json.loads(path.read_text(encoding="utf-8")))


def peaks() -> dict[str, float | None]:
    """The peaks of this process' CUDA memory in GB since they were last reset."""
    if not torch.cuda.is_available():
        return {"allocated": None, "reserved": None}
    return {
        "allocated": torch.cuda.max_memory_allocated() / 1e9,
        "reserved": torch.cuda.max_memory_reserved() / 1e9,
    }
