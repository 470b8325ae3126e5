"""Which entries of a weight to train: the masks of Sparse High Rank Adapters (arXiv 2406.13175).

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

KINDS = ("struct", "rand", "wm", "grad", "snip")


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
    drawn = torch.randperm(numel, generator=generator, device=generator.device)[:k]
    return _sorted(drawn, numel)


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
    return _largest(weight.detach().float().abs(), k, "weight")


def grad(gradient: Tensor, k: int) -> Tensor:
    """The k largest magnitudes of a gradient gathered on calibration data."""
    return _largest(gradient.detach().float().abs(), k, "gradient")


def snip(weight: Tensor, gradient: Tensor, k: int) -> Tensor:
    """The k largest |weight * gradient| (SNIP, arXiv 1810.02340)."""
    if weight.shape != gradient.shape:
        raise SettingError(
            f"the gradient's shape {tuple(gradient.shape)} is not the weight's "
            f"{tuple(weight.shape)}"
        )
    score = (weight.detach().float() * gradient.detach().float()).abs()
    return _largest(score, k, "weight * gradient")


def select(
    kind: str,
    weight: Tensor,
    k: int,
    *,
    generator: torch.Generator | None = None,
    gradient: Tensor | None = None,
) -> Tensor:
    """Choose k entries of `weight` by the mask named `kind`, one of `KINDS`.

    `rand` needs `generator`, `grad` and `snip` need `gradient`; `SettingError` says so.
    """
    if kind == "struct":
        return struct(weight.shape, k)
    if kind == "wm":
        return wm(weight, k)
    if kind == "rand":
        if generator is None:
            raise SettingError("the mask 'rand' needs a generator; see masks.layer_generator")
        return rand(weight.shape, k, generator)
    if kind not in KINDS:
        raise SettingError(f"there is no mask {kind!r}; {nearest(kind, KINDS, most=len(KINDS))}")
    if gradient is None:
        raise SettingError(f"the mask {kind!r} needs a gradient from calibration data")
    return grad(gradient, k) if kind == "grad" else snip(weight, gradient, k)


def _check_k(shape: Sequence[int], k: int) -> int:
    numel = math.prod(shape)
    if not 0 <= k <= numel:
        raise SettingError(f"cannot choose {k} of the {numel} entries of a weight {tuple(shape)}")
    return numel


def _spaced(total: int, k: int) -> Tensor:
    """The k of 0..total-1 at even distance."""
    return torch.arange(k) * total // k


def _largest(score: Tensor, k: int, what: str) -> Tensor:
    numel = _check_k(score.shape, k)
    if not bool(torch.isfinite(score).all()):
        raise SettingError(f"the {what} holds NaN or infinity, so its largest entries mean nothing")
    return _sorted(score.flatten().topk(k, sorted=False).indices, numel)


def _sorted(indices: Tensor, numel: int) -> Tensor:
    return indices.sort().values.to(index_dtype(numel))
