"""Make one adapter out of several, on the sparse changes themselves."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from shira_diffusion.adapter import Adapter, AdapterInfo
from shira_diffusion.delta import SparseDelta
from shira_diffusion.errors import MismatchError, SettingError


def weighted_sum(parts: Sequence[tuple[Adapter, float]], *, name: str) -> Adapter:
    """The sum of strength * change over all `parts`, as one adapter.

    It touches exactly the union of their entries; values are fp32 and do not depend on the order
    of `parts`. Applied at strength 1 it gives the weights that the mix itself gives, bit for bit.
    Raises `MismatchError` for adapters of different bases or shapes.
    """
    if not parts:
        raise SettingError("there is nothing to fuse; give at least one adapter")
    by_weight: dict[str, list[tuple[SparseDelta, float]]] = {}
    for adapter, strength in parts:
        for weight_name, delta in adapter.deltas.items():
            by_weight.setdefault(weight_name, []).append((delta, strength))
    deltas = {}
    for weight_name, terms in by_weight.items():
        if len({delta.shape for delta, _ in terms}) > 1:
            shapes = sorted({delta.shape for delta, _ in terms})
            raise MismatchError(
                f"the adapters change {weight_name!r} as weights of different shapes, {shapes}; "
                "they belong to different models"
            )
        deltas[weight_name] = sum_deltas(terms)
    return Adapter(deltas, _fused_info(parts, name))


def sum_deltas(terms: Sequence[tuple[SparseDelta, float]]) -> SparseDelta:
    """The sum of strength * delta for one weight, in fp32 on the union of the entries.

    All deltas have one shape and device. Where three or more meet, the terms of an entry are
    added from the smallest to the largest: a sum of floats depends on its order, and this one
    must not depend on that of `terms`. Raises `SettingError` for strengths that are not finite or
    that leave fp32's range.
    """
    for _, strength in terms:
        if not math.isfinite(strength):
            raise SettingError(f"a strength must be a finite number, got {strength}")
    scaled = [(delta.indices, delta.values.float() * strength) for delta, strength in terms]
    shape = terms[0][0].shape
    if len(scaled) == 1:
        return _in_range(*scaled[0], shape)
    union, places = torch.cat([indices for indices, _ in scaled]).unique(return_inverse=True)
    rows = torch.zeros(len(scaled), union.numel(), device=union.device)
    parts = places.split([indices.numel() for indices, _ in scaled])
    for row, part, (_, values) in zip(rows, parts, scaled, strict=True):
        row.index_copy_(0, part, values)
    return _in_range(union, _ordered_sum(rows), shape)


def _in_range(indices: Tensor, values: Tensor, shape: tuple[int, ...]) -> SparseDelta:
    if not bool(values.isfinite().all()):
        raise SettingError("these strengths take the changes out of fp32's range; use smaller ones")
    return SparseDelta(indices, values, shape)


def _ordered_sum(rows: Tensor) -> Tensor:
    if rows.shape[0] > 2:
        rows = rows.sort(dim=0).values
    total = rows[0]
    for row in rows[1:]:
        total = total + row
    return total


def _fused_info(parts: Sequence[tuple[Adapter, float]], name: str) -> AdapterInfo:
    ordered = sorted(parts, key=lambda part: (part[0].info.name, part[1]))
    infos = [adapter.info for adapter, _ in ordered]
    fingerprints: dict[str, str] = {}
    for info in infos:
        for component, mark in info.base_fingerprint.items():
            if fingerprints.setdefault(component, mark) != mark:
                raise MismatchError(
                    f"{infos[0].name!r} and {info.name!r} were made for different bases (their "
                    f"{component!r} differs); declare one fit with Adapter.for_base first"
                )
    recipe = ", ".join(f"{adapter.info.name} x {strength:g}" for adapter, strength in ordered)

    def joined(read: Callable[[AdapterInfo], str]) -> str:
        return "; ".join(_unique(read(info) for info in infos))

    return dataclasses.replace(
        infos[0],
        name=name,
        title="",
        description="",
        date="",
        base_model=joined(lambda info: info.base_model),
        base_fingerprint=fingerprints,
        method=infos[0].method if len({info.method for info in infos}) == 1 else "shira",
        mask=joined(lambda info: info.mask),
        license=joined(lambda info: info.license),
        author=joined(lambda info: info.author),
        trigger_words=_unique(word for info in infos for word in info.trigger_words),
        tags=_unique(tag for info in infos for tag in info.tags),
        training={"fused": recipe},
    )


def _unique(words: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(word for word in words if word))
