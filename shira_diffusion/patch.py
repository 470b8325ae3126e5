"""What a mix of adapters does to one live weight, and all that is needed to take it back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from shira_diffusion.delta import SparseDelta
from shira_diffusion.errors import MismatchError
from shira_diffusion.fuse import sum_deltas
from shira_diffusion.scatter import read, write


@dataclass(frozen=True, eq=False)
class Patch:
    """The touched entries of one weight of `shape`: `indices` (k,), values in the weight's dtype.

    `base` (k,) are the stored values, which `restore` puts back bit for bit; `mixed` (k,) are
    those under the mix.
    """

    shape: tuple[int, ...]
    indices: Tensor
    base: Tensor
    mixed: Tensor

    @classmethod
    def plan(cls, weight: Tensor, terms: Sequence[tuple[SparseDelta, float]]) -> Patch:
        """Base + sum of strength * delta, in fp32 and rounded once; nothing is written.

        `weight` holds its base values. Raises `MismatchError` where its dtype cannot hold the mix.
        """
        change = sum_deltas([(delta.to(weight.device), strength) for delta, strength in terms])
        base = read(weight, change.indices)
        mixed = (base.float() + change.values).to(weight.dtype)
        if not bool((mixed.isfinite() | ~base.isfinite()).all()):
            raise MismatchError(
                f"this mix leaves the range of {weight.dtype}; use smaller strengths, or load the "
                "model in bf16 or fp32"
            )
        return cls(tuple(weight.shape), change.indices, base, mixed)

    def apply(self, weight: Tensor) -> None:
        """Write the mix; the inverse of `restore`."""
        write(weight, self.indices, self.mixed)

    def restore(self, weight: Tensor) -> None:
        """Write the stored base values; the inverse of `apply`."""
        write(weight, self.indices, self.base)

    def follow(self, weight: Tensor) -> Patch:
        """This patch as it lies in `weight`, which may have been moved or cast since `apply`.

        Casting acts on each entry alone, so the cast base values are those that the cast base
        would have. Raises `MismatchError` when the weight no longer holds the mix; that is always
        compared, as torch does not count writes through `.data`.
        """
        mixed = self.mixed.to(weight.device, weight.dtype)
        indices = self.indices.to(weight.device)
        held = read(weight, indices)
        if not bool(((held == mixed) | (held.isnan() & mixed.isnan())).all()):
            raise MismatchError("something else changed it while adapters were active")
        return Patch(self.shape, indices, self.base.to(weight.device, weight.dtype), mixed)
