"""The best low-rank stand-in for a change."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from shira_diffusion.adapter import Delta
from shira_diffusion.lowrank import LowRankDelta

# Up to this side the exact decomposition takes well under a second on one core.
_EXACT_SIDE = 256
_OVERSAMPLED, _ITERATIONS = 16, 4


@dataclass(frozen=True, eq=False)
class Factors:
    """up @ down in place of a change: (out, rank, ...) and (rank, in, ...), in fp32 or as rounded.

    `whole` is the squared norm of the change, `lost` that of its difference to the product.
    """

    up: Tensor
    down: Tensor
    change: Tensor

    @property
    def whole(self) -> float:
        """The squared norm of the change."""
        return float(self.change.double().square().sum())

    @property
    def lost(self) -> float:
        """The squared norm of the change less the product of the factors."""
        rows = self.change.shape[0]
        product = self.up.float().reshape(rows, -1) @ self.down.float().flatten(1)
        return float((self.change.reshape(rows, -1) - product).double().square().sum())

    def rounded(self, dtype: torch.dtype) -> Factors:
        """The same with factors in another dtype, which may lose a little more."""
        return dataclasses.replace(self, up=self.up.to(dtype), down=self.down.to(dtype))


def factored(delta: Delta, rank: int) -> Factors:
    """Factors of exactly `rank`, filled up with zeros, shaped as a LoRA's for the delta's weight.

    Exact where the change lies within `rank` rows or columns, or is a product of at most this rank
    already; otherwise the closest product there is (Eckart and Young), for large weights by a
    randomised method (Halko et al., arXiv 0909.4061) that comes close to it. Deterministic.
    """
    change = delta.to_dense().float()
    matrix = change.flatten(1)
    up, down = _factors(delta, matrix, rank)
    missing = rank - up.shape[1]
    up = torch.nn.functional.pad(up, (0, missing)).contiguous()
    down = torch.nn.functional.pad(down, (0, 0, 0, missing)).contiguous()
    trailing = [1] * (change.dim() - 2)
    return Factors(up.reshape(*up.shape, *trailing), down.reshape(rank, *change.shape[1:]), change)


def _factors(delta: Delta, matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    if isinstance(delta, LowRankDelta) and delta.rank <= rank:
        return delta.up.float() * delta.scale, delta.down.float()
    rows = matrix.count_nonzero(dim=1).nonzero().squeeze(1)
    if rows.numel() <= rank:
        return _unit_columns(matrix.shape[0], rows, matrix), matrix[rows]
    columns = matrix.count_nonzero(dim=0).nonzero().squeeze(1)
    if columns.numel() <= rank:
        return matrix[:, columns], _unit_columns(matrix.shape[1], columns, matrix).t()
    left, values, right = _decomposed(matrix, rank)
    roots = values.sqrt()
    return left * roots, (right * roots).t()


def _unit_columns(size: int, places: Tensor, like: Tensor) -> Tensor:
    """(size, n), column i one at places[i]."""
    units = like.new_zeros(size, places.numel())
    units[places, torch.arange(places.numel(), device=like.device)] = 1.0
    return units


def _decomposed(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """The first singular vectors and values: (out, rank), (rank,), (in, rank)."""
    sampled = rank + _OVERSAMPLED
    if min(matrix.shape) <= max(_EXACT_SIDE, sampled):
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
        return left[:, :rank], values[:rank], right[:rank].t()
    devices = [matrix.device] if matrix.is_cuda else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(0)
        left, values, right = torch.svd_lowrank(matrix, q=sampled, niter=_ITERATIONS)
    return left[:, :rank], values[:rank], right[:, :rank]
