"""Make an adapter sparser: by magnitude, or at random as DARE does."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from shira_diffusion.adapter import Adapter
from shira_diffusion.delta import SparseDelta
from shira_diffusion.errors import SettingError
from shira_diffusion.masks import count


def prune(adapter: Adapter, keep: float) -> Adapter:
    """The share `keep` in (0, 1] of its entries that are largest in magnitude, over all weights.

    Of equal magnitudes those stay that come first, by the weights' names and then their indices.
    Values keep their dtype.
    """
    if not 0.0 < keep <= 1.0:
        raise SettingError(f"keep must be above 0 and at most 1, got {keep}")
    adapter = dataclasses.replace(adapter, deltas=adapter.entries)
    values = [delta.values.float().abs().cpu() for delta in adapter.entries.values()]
    magnitudes = torch.cat([torch.empty(0), *values])
    kept = torch.zeros(adapter.nnz, dtype=torch.bool)
    if adapter.nnz:
        order = magnitudes.sort(descending=True, stable=True).indices
        kept[order[: count(adapter.nnz, keep)]] = True
    return _noted(adapter, _kept(adapter, kept), f"the {keep:g} largest")


def dare(adapter: Adapter, drop: float, generator: torch.Generator) -> Adapter:
    """Drop each entry with probability `drop` in [0, 1) and divide the others by 1 - drop.

    Drop and rescale of arXiv 2311.03099, which keeps the expected change. `generator` draws one
    number for each entry, in the order of the weights' names. Values become fp32.
    """
    if not 0.0 <= drop < 1.0:
        raise SettingError(f"drop must be at least 0 and below 1, got {drop}")
    adapter = dataclasses.replace(adapter, deltas=adapter.entries)
    drawn = torch.rand(adapter.nnz, generator=generator, device=generator.device).cpu()
    deltas = {
        name: dataclasses.replace(delta, values=delta.values.float() / (1.0 - drop))
        for name, delta in _kept(adapter, drawn >= drop).items()
    }
    return _noted(adapter, deltas, f"DARE {drop:g}")


def _kept(adapter: Adapter, kept: Tensor) -> dict[str, SparseDelta]:
    """The entries at which `kept` (nnz,) is true, numbered through all weights."""
    entries = adapter.entries
    parts = kept.split([delta.nnz for delta in entries.values()])
    deltas = {}
    for (name, delta), part in zip(entries.items(), parts, strict=True):
        here = part.to(delta.values.device)
        deltas[name] = SparseDelta(delta.indices[here], delta.values[here], delta.shape)
    return deltas


def _noted(adapter: Adapter, deltas: dict[str, SparseDelta], what: str) -> Adapter:
    before = adapter.info.training.get("thinned", "")
    training = {**adapter.info.training, "thinned": f"{before}, {what}".removeprefix(", ")}
    return Adapter(deltas, dataclasses.replace(adapter.info, training=training))
