"""What is in an adapter, in numbers: entries by weight and by block, and how large they are."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from operator import attrgetter

import torch
from torch import Tensor

from shira_diffusion.adapter import Adapter, Delta
from shira_diffusion.delta import SparseDelta

# Half decades from 1e-10 to 1e6: what fp16 can hold at all lies between 6e-8 and 65504.
EDGES = tuple(10.0 ** (half / 2) for half in range(-20, 13))
# A block is `unet.down_blocks.1`, `unet.mid_block`, `text_encoder.text_model.encoder`.
_DEEPEST = 3


@dataclass(frozen=True)
class Part:
    """The entries of one weight, or of several together.

    `squares` is the sum of squares and `largest` the maximum of |delta|; `zeros` counts entries
    whose change is 0. `counts` has the other entries by magnitude: below the first of `EDGES`,
    between each two of them, and from the last on.
    """

    name: str
    weights: int
    entries: int
    numel: int
    zeros: int
    squares: float
    largest: float
    counts: tuple[int, ...]

    @property
    def density(self) -> float:
        """The share of entries that change."""
        return self.entries / self.numel if self.numel else 0.0

    @property
    def rms(self) -> float:
        """The root of the mean square of the change, over the entries that change."""
        return math.sqrt(self.squares / self.entries) if self.entries else 0.0


def layers(adapter: Adapter, read: Callable[[str], Tensor] | None = None) -> list[Part]:
    """One part for each weight, in the adapter's order; one is dense in memory at a time.

    `read` gets the base's weight of a name, which a DoRA's change depends on; `DeltaError` for one
    without it.
    """
    return [
        _part(name, delta, changes(delta, None if read is None else read(name)))
        for name, delta in adapter.deltas.items()
    ]


def changes(delta: Delta, base: Tensor | None = None) -> Tensor:
    """The change of the entries that change, in fp32: (nnz,) or of the weight's shape."""
    return delta.values.float() if isinstance(delta, SparseDelta) else delta.change(base)


def blocks(parts: Sequence[Part]) -> list[Part]:
    """The parts of `layers` joined by the block of the model that they stand in."""
    named = sorted(((block(part.name), part) for part in parts), key=lambda pair: pair[0])
    grouped = itertools.groupby(named, key=lambda pair: pair[0])
    return [joined(name, [part for _, part in group]) for name, group in grouped]


def joined(name: str, parts: Sequence[Part]) -> Part:
    """All of `parts` as one."""

    def total(read: Callable[[Part], int]) -> int:
        return sum(read(part) for part in parts)

    counts: Iterable[tuple[int, ...]] = zip(*(part.counts for part in parts), strict=True)
    return Part(
        name=name,
        weights=total(attrgetter("weights")),
        entries=total(attrgetter("entries")),
        numel=total(attrgetter("numel")),
        zeros=total(attrgetter("zeros")),
        squares=math.fsum(part.squares for part in parts),
        largest=max((part.largest for part in parts), default=0.0),
        counts=tuple(sum(column) for column in counts) or (0,) * (len(EDGES) + 1),
    )


def _part(name: str, delta: Delta, change: Tensor) -> Part:
    sizes = change.detach().flatten().abs()
    nonzero = sizes[sizes > 0]
    return Part(
        name=name,
        weights=1,
        entries=sizes.numel(),
        numel=delta.numel,
        zeros=sizes.numel() - nonzero.numel(),
        squares=float(nonzero.double().square().sum()),
        largest=float(nonzero.max()) if nonzero.numel() else 0.0,
        counts=_counts(nonzero),
    )


def _counts(sizes: Tensor) -> tuple[int, ...]:
    edges = torch.tensor(EDGES, device=sizes.device)
    where = torch.bucketize(sizes, edges, right=True)
    return tuple(int(count) for count in torch.bincount(where, minlength=len(EDGES) + 1))


def block(name: str) -> str:
    """The block of the model that a weight stands in."""
    path = name.split(".")
    # `mid_block` has no number, unlike its neighbours.
    deep = _DEEPEST - 1 if len(path) > 1 and path[1] == "mid_block" else _DEEPEST
    return ".".join(path[:deep])
