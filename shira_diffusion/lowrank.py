"""The change of one weight as a LoRA's or DoRA's factors, computed only where it is needed."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from shira_diffusion.delta import SparseDelta, bounds, index_dtype
from shira_diffusion.errors import DeltaError

# Two thin factors can claim any size, and no weight of a diffusion model comes near this one.
_MOST_ENTRIES = 2**28
_LARGEST = torch.finfo(torch.float32).max


@dataclass(frozen=True, eq=False)
class LowRankDelta:
    """scale * up @ down over all entries of one weight, as LoRA has it (arXiv 2106.09685).

    `up` (out, rank) and `down` (rank, in), both fp16, bf16 or fp32 and finite; `shape` is the
    weight's, (out, ...) with as many entries as out * in. Raises `DeltaError` when they do not fit.
    """

    up: Tensor
    down: Tensor
    scale: float
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(int(size) for size in self.shape))
        up, down = tuple(self.up.shape), tuple(self.down.shape)
        if len(up) != 2 or len(down) != 2 or up[1] != down[0] or not up[1]:
            raise DeltaError(f"the factors do not multiply: {up} and {down}")
        if not self.shape or (self.shape[0], math.prod(self.shape[1:])) != (up[0], down[1]):
            raise DeltaError(f"factors of {up} and {down} make no weight of shape {self.shape}")
        if self.numel > _MOST_ENTRIES:
            raise DeltaError(f"the factors claim a weight of the size {self.shape}")
        if not all(one.is_floating_point() for one in self.tensors.values()):
            raise DeltaError("the factors are not floating-point numbers")
        ends = [end for one in self.tensors.values() for end in bounds(one)]
        # The scale is used in fp32.
        if not all(abs(end) <= _LARGEST for end in (*ends, self.scale)):
            raise DeltaError("factors or scale hold NaN or infinity")

    @property
    def rank(self) -> int:
        """How many columns `up` has."""
        return self.down.shape[0]

    @property
    def numel(self) -> int:
        """How many entries the weight has."""
        return math.prod(self.shape)

    @property
    def nnz(self) -> int:
        """How many entries change: all of them."""
        return self.numel

    @property
    def density(self) -> float:
        """The share of entries that change: 1."""
        return 1.0

    @property
    def tensors(self) -> dict[str, Tensor]:
        """What it holds, by the name of its field."""
        return {"up": self.up, "down": self.down}

    @property
    def nbytes(self) -> int:
        """How much memory it holds."""
        return sum(one.nbytes for one in self.tensors.values())

    def require_no_base(self) -> None:
        """Raise `DeltaError` if the change depends on the weight that it changes."""

    def change(self, base: Tensor | None = None) -> Tensor:  # noqa: ARG002
        """The dense change in fp32, of the weight's shape, on the factors' device.

        `base` is the weight that is changed, which a DoRA cannot do without.
        """
        return (self.up.float() @ self.down.float()).mul_(self.scale).reshape(self.shape)

    def to_dense(self) -> Tensor:
        """The change as a tensor of the weight's shape, in fp32."""
        return self.change()

    def entries(self) -> SparseDelta:
        """The change as entries, all of them, in fp32: eight bytes an entry of the weight."""
        places = torch.arange(self.numel, dtype=index_dtype(self.numel), device=self.up.device)
        return SparseDelta(places, self.change().flatten(), self.shape)

    def with_tensors(self, tensors: dict[str, Tensor]) -> LowRankDelta:
        """The same with other tensors in its fields, unchecked as to their values."""
        new = object.__new__(type(self))
        for field in dataclasses.fields(self):
            value = tensors.get(field.name, getattr(self, field.name))
            object.__setattr__(new, field.name, value)
        return new

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> LowRankDelta:
        """The same change on another device, its factors in another dtype."""
        return self.with_tensors(
            {name: one.to(device=device, dtype=dtype) for name, one in self.tensors.items()}
        )


@dataclass(frozen=True, eq=False)
class DoraDelta(LowRankDelta):
    """magnitude * D / |D| - W with D = W + scale * up @ down, as DoRA has it (arXiv 2402.09353).

    `magnitude` is (out, 1), and |D| the norm of each row, as PEFT trains it; or (1, in) and the
    norm of each column, as some of LyCORIS' files have it. A convolution counts as a matrix.
    """

    magnitude: Tensor

    def __post_init__(self) -> None:
        super().__post_init__()
        rows, columns = self.up.shape[0], self.down.shape[1]
        if tuple(self.magnitude.shape) not in {(rows, 1), (1, columns)}:
            raise DeltaError(
                f"a magnitude of shape {tuple(self.magnitude.shape)} fits neither rows nor columns "
                f"of a weight of shape {self.shape}"
            )

    @property
    def tensors(self) -> dict[str, Tensor]:
        """What it holds, by the name of its field."""
        return {**super().tensors, "magnitude": self.magnitude}

    def require_no_base(self) -> None:
        """Raise `DeltaError`: the change depends on the weight that it changes."""
        raise DeltaError(
            "the change of a DoRA depends on the base weight; give the base model, or switch it in "
            "a model"
        )

    def change(self, base: Tensor | None = None) -> Tensor:
        """The dense change of `base` in fp32; raises `DeltaError` without a base."""
        if base is None:
            self.require_no_base()
        assert base is not None
        weight = base.detach().to(self.up.device).float().reshape(self.shape)
        directed = (weight + super().change()).flatten(1)
        along = 1 if self.magnitude.shape[1] == 1 else 0
        norms = directed.norm(dim=along, keepdim=True)
        # A row of zeros has no direction; it stays zero.
        turned = directed * (self.magnitude.float() / norms.clamp_min(1e-30))
        return turned.reshape(self.shape) - weight
