"""How much two adapters get in each other's way, from their sparse entries.

AWOM and AWOR are the paper's (Sparse High Rank Adapters, arXiv 2406.13175): A' B is formed for
every weight that either adapter touches, and the result is averaged over these weights. A weight
counts as a matrix (out, everything else), one that only one adapter touches as A' B = 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from shira_diffusion.adapter import Adapter
from shira_diffusion.delta import SparseDelta
from shira_diffusion.errors import MismatchError

# From this share of entries on, the dense product is the faster one.
_DENSE_FROM = 0.1


@dataclass(frozen=True)
class Meeting:
    """How two adapters meet in one weight that either touches.

    `shared` entries are changed by both, `opposed` of them in opposite directions; `smaller` is the
    entry count of the one that changes fewer. `awom` and `awor` are those of this weight, `bound`
    is |A| |B|, which the AWOM cannot exceed.
    """

    weight: str
    shared: int
    opposed: int
    smaller: int
    awom: float
    awor: float
    bound: float

    @property
    def overlap(self) -> float:
        """The share of the smaller one's entries that both change, 0 to 1."""
        return self.shared / self.smaller if self.smaller else 0.0

    @property
    def relative_awom(self) -> float:
        """AWOM as a share of the most that changes of these sizes can have, 0 to 1."""
        return self.awom / self.bound if self.bound else 0.0


def density(adapter: Adapter) -> float:
    """The share of changed entries among those of the weights that the adapter touches."""
    return adapter.density


def overlap(a: Adapter, b: Adapter) -> float:
    """The share of the smaller adapter's entries that the other one changes too, 0 to 1."""
    smaller = min(a.nnz, b.nnz)
    return sum(_by_weight(a, b, _shared, absent=0.0)) / smaller if smaller else 0.0


def awom(a: Adapter, b: Adapter) -> float:
    """Adapter weight orthogonality magnitude: the L2 norm of A' B, 0 without interference."""
    return _mean(_by_weight(a, b, _magnitude, absent=0.0), empty=0.0)


def awor(a: Adapter, b: Adapter) -> float:
    """Adapter weight orthogonality ratio: the share of zeros in A' B, 1 without interference."""
    return _mean(_by_weight(a, b, _zeros, absent=1.0), empty=1.0)


def meetings(a: Adapter, b: Adapter) -> Iterator[Meeting]:
    """Every weight that either touches, in order of name, as soon as it is measured.

    Their means are `awom` and `awor`, and their sum of `shared` gives `overlap`.
    """
    for name, first, second in _pairs(a, b):
        if first is None or second is None:
            yield Meeting(name, 0, 0, 0, awom=0.0, awor=1.0, bound=0.0)
        else:
            yield _meeting(name, first, second)


def _meeting(name: str, a: SparseDelta, b: SparseDelta) -> Meeting:
    in_a = torch.isin(a.indices, b.indices, assume_unique=True)
    in_b = torch.isin(b.indices, a.indices, assume_unique=True)
    opposed = a.values[in_a].sign() * b.values[in_b].sign() < 0
    product = _product(a, b)
    return Meeting(
        name,
        shared=int(in_a.sum()),
        opposed=int(opposed.sum()),
        smaller=min(a.nnz, b.nnz),
        awom=float(product.norm()),
        awor=_share_of_zeros(product, a),
        bound=float(a.values.double().norm() * b.values.double().norm()),
    )


def _by_weight(
    a: Adapter,
    b: Adapter,
    measure: Callable[[SparseDelta, SparseDelta], float],
    *,
    absent: float,
) -> list[float]:
    """`measure` for each weight that both touch, `absent` for each that only one does."""
    return [
        absent if first is None or second is None else measure(first, second)
        for _, first, second in _pairs(a, b)
    ]


def _pairs(a: Adapter, b: Adapter) -> Iterator[tuple[str, SparseDelta | None, SparseDelta | None]]:
    """Every weight that either touches, in order of name, with both changes if both do."""
    for name in sorted(a.deltas.keys() | b.deltas.keys()):
        first, second = a.deltas.get(name), b.deltas.get(name)
        if first is None or second is None:
            yield name, None, None
            continue
        if first.shape != second.shape:
            raise MismatchError(
                f"the weight {name!r} is {first.shape} in one adapter and {second.shape} in the "
                "other; they belong to different models"
            )
        yield name, first.entries(), second.entries()


def _mean(results: list[float], *, empty: float) -> float:
    return sum(results) / len(results) if results else empty


def _shared(a: SparseDelta, b: SparseDelta) -> float:
    return float(torch.isin(a.indices, b.indices, assume_unique=True).sum())


def _magnitude(a: SparseDelta, b: SparseDelta) -> float:
    return float(_product(a, b).norm())


def _zeros(a: SparseDelta, b: SparseDelta) -> float:
    return _share_of_zeros(_product(a, b), a)


def _share_of_zeros(product: Tensor, a: SparseDelta) -> float:
    entries = _columns(a) ** 2
    return 1.0 - float(product.count_nonzero()) / entries if entries else 1.0


def _product(a: SparseDelta, b: SparseDelta) -> Tensor:
    """The entries of A' B (columns x columns) that may not be zero, 1-D in fp64."""
    if max(a.density, b.density) < _DENSE_FROM:
        return _sparse_product(a, b)
    dense_a, dense_b = (one.to_dense().double().reshape(-1, _columns(one)) for one in (a, b))
    return (dense_a.t() @ dense_b).flatten()


def _sparse_product(a: SparseDelta, b: SparseDelta) -> Tensor:
    """A' B by pairing every entry of `a` with all entries of `b` in the same row."""
    columns = _columns(a)
    row_a, row_b = a.indices.long() // columns, b.indices.long() // columns
    in_row = torch.bincount(row_b, minlength=a.numel // columns)
    first_in_row = in_row.cumsum(0) - in_row
    partners = in_row[row_a]
    left = torch.arange(a.nnz, device=row_a.device).repeat_interleave(partners)
    nth = torch.arange(left.numel(), device=left.device) - (partners.cumsum(0) - partners)[left]
    right = first_in_row[row_a][left] + nth
    terms = a.values.double()[left] * b.values.double()[right]
    places = a.indices.long()[left] % columns * columns + b.indices.long()[right] % columns
    places, entry = places.unique(return_inverse=True)
    return terms.new_zeros(places.numel()).index_add_(0, entry, terms)


def _columns(delta: SparseDelta) -> int:
    return delta.numel // delta.shape[0] if delta.shape and delta.shape[0] else 1
