"""How many entries of each weight to train, when all weights share one budget."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

import torch
from torch import Tensor

from shira_diffusion.errors import SettingError

_HALF = 16
_BINS = 1 << _HALF
_ZERO = _BINS // 2


def by_size(sizes: Mapping[str, int], total: int) -> dict[str, int]:
    """The same share of every weight, rounded so that all together have exactly `total`.

    `sizes` are the weights' numbers of entries; the largest remainders are rounded up.
    """
    entries = sum(sizes.values())
    _check_total(total, entries)
    shares = {name: divmod(size * total, max(entries, 1)) for name, size in sizes.items()}
    counts = {name: whole for name, (whole, _) in shares.items()}
    largest_first = sorted(shares, key=lambda name: (-shares[name][1], name))
    for name in largest_first[: total - sum(counts.values())]:
        counts[name] += 1
    return counts


def by_score(names: Collection[str], score: Callable[[str], Tensor], total: int) -> dict[str, int]:
    """How many of the `total` largest scores of all weights lie in each of them.

    The k largest of each weight then are the `total` largest of all; of equal scores at the edge,
    those of earlier names count first. `score(name)` gives fp32 scores, as `masks.score` does. It
    is called three times a name, so that only one weight's scores need be in memory.
    """
    # The edge, as an ordered integer: first its upper half, then the lower among those of that.
    upper = sum((_histogram((_keys(score(name)) >> _HALF) + _ZERO) for name in names), _empty())
    _check_total(total, int(upper.sum()))
    if total == 0:
        return dict.fromkeys(names, 0)
    top, wanted = _bin_of(upper, total)
    top -= _ZERO
    lower = _empty()
    for name in names:
        keys = _keys(score(name))
        lower += _histogram(keys[keys >> _HALF == top] & (_BINS - 1))
    bottom, wanted = _bin_of(lower, wanted)
    edge = top * _BINS + bottom
    counts = {}
    for name in names:
        keys = _keys(score(name))
        at_edge = min(wanted, int((keys == edge).sum()))
        counts[name] = int((keys > edge).sum()) + at_edge
        wanted -= at_edge
    return counts


def _check_total(total: int, entries: int) -> None:
    if not 0 <= total <= entries:
        raise SettingError(f"cannot choose {total} of {entries} entries of all weights")


def _keys(scores: Tensor) -> Tensor:
    """The scores as int32 in the same order, flat."""
    # Adding 0 makes -0 a 0. A positive float's bits rise with it, a negative one's fall.
    bits = (scores.float().flatten() + 0.0).view(torch.int32)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


def _empty() -> Tensor:
    return torch.zeros(_BINS, dtype=torch.int64)


def _histogram(halves: Tensor) -> Tensor:
    return torch.bincount(halves, minlength=_BINS).cpu()


def _bin_of(histogram: Tensor, wanted: int) -> tuple[int, int]:
    """The bin that the `wanted`-th largest is in, and how many of that bin are wanted."""
    from_above = histogram.flip(0).cumsum(0)
    place = int(torch.searchsorted(from_above, wanted))
    above = int(from_above[place - 1]) if place else 0
    return _BINS - 1 - place, wanted - above
