"""The change of one weight, as the few entries that change."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from shira_diffusion.errors import DeltaError

VALUE_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
_LARGEST_INT32 = 2**31 - 1


def index_dtype(numel: int) -> torch.dtype:
    """The integer type that flat indices into `numel` entries have: int32, int64 past 2^31 - 1."""
    return torch.int32 if numel <= _LARGEST_INT32 else torch.int64


def check_indices(indices: Tensor, numel: int) -> None:
    """Require `indices` to be flat, of the right type, strictly rising and below `numel`.

    Raises `DeltaError` that says which of these does not hold.
    """
    wanted = index_dtype(numel)
    if indices.dim() != 1 or indices.dtype != wanted:
        raise DeltaError(
            f"indices must be 1-D {wanted} for {numel} entries, got {indices.dtype} of shape "
            f"{tuple(indices.shape)}; flatten and convert them"
        )
    if indices.numel() == 0:
        return
    # Of all ways to look at every entry, minimum and maximum are the fastest by far.
    lowest, highest = (int(end) for end in indices.aminmax())
    if lowest < 0 or highest >= numel:
        raise DeltaError(
            f"indices run from {lowest} to {highest}, but the weight has {numel} entries; "
            "they belong to a weight of another shape"
        )
    if indices.numel() > 1 and int(indices.diff().min()) < 1:
        raise DeltaError("indices must be sorted and unique; sort them with torch.unique")


def bounds(values: Tensor) -> tuple[float, float]:
    """The smallest and the largest value, both NaN if one is; 0 and 0 for none."""
    if not values.numel():
        return 0.0, 0.0
    low, high = values.detach().aminmax()
    return float(low), float(high)


@dataclass(frozen=True, eq=False)
class SparseDelta:
    """W_new - W_base at some entries of one weight.

    `indices` (nnz,) int32 (int64 past 2^31 - 1), sorted and unique, point into `weight.flatten()`;
    `values` (nnz,) are fp16, bf16 or fp32 and finite; `shape` is the weight's.
    Raises `DeltaError` when they do not fit together.
    """

    indices: Tensor
    values: Tensor
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(int(size) for size in self.shape))
        if any(size < 0 for size in self.shape):
            raise DeltaError(f"a weight cannot have the shape {self.shape}")
        check_indices(self.indices, self.numel)
        if self.values.dtype not in VALUE_DTYPES:
            raise DeltaError(f"values must be fp16, bf16 or fp32, got {self.values.dtype}")
        if self.values.shape != self.indices.shape:
            raise DeltaError(
                f"{self.indices.numel()} indices need as many values, got a tensor of shape "
                f"{tuple(self.values.shape)}"
            )
        if self.values.device != self.indices.device:
            raise DeltaError(
                f"indices are on {self.indices.device} but values on {self.values.device}; "
                "move them to one device"
            )
        if not all(math.isfinite(end) for end in bounds(self.values)):
            raise DeltaError("values hold NaN or infinity; the training that made them diverged")

    @classmethod
    def checked(cls, indices: Tensor, values: Tensor, shape: tuple[int, ...]) -> SparseDelta:
        """A change of which the caller has checked all that the constructor checks."""
        delta = object.__new__(cls)
        for name, value in (("indices", indices), ("values", values), ("shape", shape)):
            object.__setattr__(delta, name, value)
        return delta

    @property
    def nnz(self) -> int:
        """How many entries change."""
        return self.indices.numel()

    @property
    def nbytes(self) -> int:
        """How much memory it holds."""
        return self.indices.nbytes + self.values.nbytes

    @cached_property
    def numel(self) -> int:
        """How many entries the weight has."""
        return math.prod(self.shape)

    @property
    def density(self) -> float:
        """The share of entries that change, 0 for an empty weight."""
        return self.nnz / self.numel if self.numel else 0.0

    def require_no_base(self) -> None:
        """Do nothing: the change does not depend on the weight that it changes, see `DoraDelta`."""

    def entries(self) -> SparseDelta:
        """Itself, as `LowRankDelta.entries` gives the entries of a LoRA."""
        return self

    def to_dense(self) -> Tensor:
        """The change as a tensor of the weight's shape, zero elsewhere, in the values' dtype."""
        dense = torch.zeros(self.numel, dtype=self.values.dtype, device=self.values.device)
        return dense.index_copy_(0, self.indices.long(), self.values).reshape(self.shape)

    @classmethod
    def from_dense(cls, dense: Tensor) -> SparseDelta:
        """Every nonzero entry of `dense` (any shape; fp16, bf16 or fp32)."""
        flat = dense.detach().flatten()
        kept = flat.nonzero().squeeze(1)
        return cls(kept.to(index_dtype(flat.numel())), flat[kept], tuple(dense.shape))

    @classmethod
    def between(cls, base: Tensor, tuned: Tensor, indices: Tensor) -> SparseDelta:
        """`tuned - base` at `indices`, in fp32; both weights have one shape."""
        if base.shape != tuned.shape:
            raise DeltaError(
                f"base and tuned weight differ in shape: {tuple(base.shape)}, {tuple(tuned.shape)}"
            )
        check_indices(indices, base.numel())
        before, after = (weight.detach().take(indices.long()).float() for weight in (base, tuned))
        return cls(indices, after - before, tuple(base.shape))

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> SparseDelta:
        """The same change on another device, its values in another dtype (fp16, bf16, fp32)."""
        indices = self.indices.to(device=device)
        values = self.values.to(device=device, dtype=dtype)
        if indices is self.indices and values is self.values:
            return self
        return SparseDelta(indices, values, self.shape)
