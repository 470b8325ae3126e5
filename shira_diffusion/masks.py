"""Which entries of a weight to train.

The masks of Sparse High Rank Adapters (arXiv 2406.13175), and SaRA's (arXiv 2409.06633).

Every mask returns exactly `k` flat indices, sorted and unique, of the type that `SparseDelta` has.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from shira_diffusion.delta import index_dtype
from shira_diffusion.errors import SettingError, nearest

SCORED = ("wm", "sara", "grad", "snip")
KINDS = ("struct", "rand", *SCORED)


def count(numel: int, density: float) -> int:
    """How many of `numel` entries the share `density` in (0, 1] is: at least one of them."""
    if not 0.0 < density <= 1.0:
        raise SettingError(f"density must be above 0 and at most 1, got {density}")
    return min(numel, max(1, round(numel * density)))


def layer_generator(seed: int, name: str) -> torch.Generator:
    """A CPU generator of its own for every layer, the same on every machine and in every run."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def rand(shape: Sequence[int], k: int, generator: torch.Generator) -> Tensor:
    """Draw k entries of a weight of `shape`, each set of k equally likely."""
    numel = _check_k(shape, k)
    return _sorted(_shuffled(numel, generator)[:k], numel)


def struct(shape: Sequence[int], k: int, offset: int = 0) -> Tensor:
    """The diagonal and then evenly spaced rows, the last of them only as far as k reaches.

    Dimensions after the first count as one (a convolution is out x (in * kh * kw)); a vector is a
    column. `offset` moves the rows and turns the diagonal, so that adapters can be kept apart.
    When k is less than the diagonal's length, entries of it are taken at even distance.
    """
    numel = _check_k(shape, k)
    rows = int(shape[0]) if shape else 1
    if k == 0:
        return _sorted(torch.empty(0, dtype=torch.int64), numel)
    columns = numel // rows
    along = torch.arange(min(rows, columns))
    diagonal = along * columns + (along + offset) % columns
    if k <= diagonal.numel():
        return _sorted(diagonal[_spaced(diagonal.numel(), k)], numel)
    rest = k - diagonal.numel()
    # Each row holds at most one diagonal entry, so it brings at least columns - 1 new ones.
    chosen = rest + 1 if columns == 1 else math.ceil(rest / (columns - 1))
    chosen = min(rows, chosen)
    starts = (_spaced(rows, chosen) + offset) % rows * columns
    entries = (starts[:, None] + torch.arange(columns)).flatten()
    fresh = entries[~torch.isin(entries, diagonal)][:rest]
    return _sorted(torch.cat((diagonal, fresh)), numel)


def wm(weight: Tensor, k: int) -> Tensor:
    """The k largest magnitudes of the weight."""
    return _largest(score("wm", weight), k)


def sara(weight: Tensor, k: int) -> Tensor:
    """The k smallest magnitudes of the weight, as SaRA chooses them (arXiv 2409.06633)."""
    return _largest(score("sara", weight), k)


def grad(gradient: Tensor, k: int) -> Tensor:
    """The k largest magnitudes of a gradient gathered on calibration data."""
    return _largest(score("grad", gradient, gradient), k)


def snip(weight: Tensor, gradient: Tensor, k: int) -> Tensor:
    """The k largest |weight * gradient| (SNIP, arXiv 1810.02340)."""
    return _largest(score("snip", weight, gradient), k)


def score(
    kind: str, weight: Tensor, gradient: Tensor | None = None, among: Sequence[Tensor] = ()
) -> Tensor:
    """What one of the kinds `SCORED` takes the largest of: fp32, in the weight's shape.

    `grad` and `snip` need `gradient`. Entries that `among` names, as in `select`, score -infinity.
    Raises `SettingError` for NaN and infinity, too.
    """
    _check_kind(kind)
    if kind in ("wm", "sara"):
        found = weight.detach().float().abs()
        found = -found if kind == "sara" else found
    elif gradient is None:
        raise SettingError(f"the mask {kind!r} needs a gradient from calibration data")
    elif gradient.shape != weight.shape:
        raise SettingError(
            f"the gradient's shape {tuple(gradient.shape)} is not the weight's "
            f"{tuple(weight.shape)}"
        )
    else:
        found = gradient.detach().float().abs()
        found = found * weight.detach().float().abs() if kind == "snip" else found
    if not bool(torch.isfinite(found).all()):
        raise SettingError(
            f"weight or gradient hold NaN or infinity, so the mask {kind!r} means nothing"
        )
    found = found.contiguous()
    for indices in among:
        found.view(-1)[indices.long().to(found.device)] = -math.inf
    return found


def select(
    kind: str,
    weight: Tensor,
    k: int,
    *,
    generator: torch.Generator | None = None,
    gradient: Tensor | None = None,
    offset: int = 0,
    among: Sequence[Tensor] = (),
) -> Tensor:
    """Choose k entries of `weight` by the mask named `kind`, one of `KINDS`, disjoint from `among`.

    `rand` needs `generator`, `grad` and `snip` need `gradient`; `offset` is that of `struct`.
    `among` holds the indices that other adapters have in this weight: the k are the best of the
    entries that they leave free. Raises `SettingError` when something is missing or too few are
    free.
    """
    _check_kind(kind)
    numel = _check_k(weight.shape, k)
    free = _free(numel, among)
    if k > int(free.sum()):
        raise SettingError(
            f"{k} entries are wanted of a weight {tuple(weight.shape)} in which other adapters "
            f"leave {int(free.sum())}; lower the density, or avoid fewer adapters"
        )
    if kind in SCORED:
        return _largest(score(kind, weight, gradient, among), k)
    if kind == "struct":
        return _struct_among(free, weight.shape, k, offset)
    if generator is None:
        raise SettingError("the mask 'rand' needs a generator; see masks.layer_generator")
    order = _shuffled(numel, generator)
    return _sorted(order[free.to(order.device)[order]][:k], numel)


def _struct_among(free: Tensor, shape: Sequence[int], k: int, offset: int) -> Tensor:
    """A struct mask of so many more entries, its rows closer together, that k are `free`."""
    asked = k
    while True:
        chosen = struct(shape, asked, offset)
        fresh = chosen[free[chosen.long()]]
        if fresh.numel() >= k:
            return fresh[_spaced(fresh.numel(), k)]
        asked += k - fresh.numel()


def _free(numel: int, among: Sequence[Tensor]) -> Tensor:
    """Which entries none of `among` names, (numel,) bool on the CPU."""
    free = torch.ones(numel, dtype=torch.bool)
    for indices in among:
        free[indices.long().cpu()] = False
    return free


def _check_kind(kind: str) -> None:
    if kind not in KINDS:
        raise SettingError(f"there is no mask {kind!r}; {nearest(kind, KINDS, most=len(KINDS))}")


def _check_k(shape: Sequence[int], k: int) -> int:
    numel = math.prod(shape)
    if not 0 <= k <= numel:
        raise SettingError(f"cannot choose {k} of the {numel} entries of a weight {tuple(shape)}")
    return numel


def _spaced(total: int, k: int) -> Tensor:
    """The k of 0..total-1 at even distance."""
    return torch.arange(k) * total // k


def _largest(scores: Tensor, k: int) -> Tensor:
    numel = _check_k(scores.shape, k)
    return _sorted(scores.flatten().topk(k, sorted=False).indices, numel)


def _shuffled(numel: int, generator: torch.Generator) -> Tensor:
    return torch.randperm(numel, generator=generator, device=generator.device)


def _sorted(indices: Tensor, numel: int) -> Tensor:
    return indices.sort().values.to(index_dtype(numel))
