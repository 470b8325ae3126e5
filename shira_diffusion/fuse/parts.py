"""What every way of fusing shares: weight by weight, and what is known of the result."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence

from torch import Tensor

from shira_diffusion.adapter import Adapter, AdapterInfo, Delta
from shira_diffusion.cards import SPARSE
from shira_diffusion.delta import SparseDelta
from shira_diffusion.errors import MismatchError, SettingError
from shira_diffusion.union import Union

Parts = Sequence[tuple[Adapter, float]]
"""Adapters and the strengths at which they are taken."""

Rule = Callable[[Union, Sequence[Tensor]], Tensor]
"""From the union of the entries and strength * change of each part, fp32, to one value an entry."""


def fused(parts: Parts, rule: Rule, *, name: str, how: str = "") -> Adapter:
    """One adapter out of `parts`, by `rule` for each weight; `how` is noted in its history.

    It touches exactly the union of their entries, with values in fp32. Raises `SettingError` for
    strengths that are not finite or that leave fp32's range, and `MismatchError` for adapters of
    different bases or shapes.
    """
    if not parts:
        raise SettingError("there is nothing to fuse; give at least one adapter")
    for _, strength in parts:
        if not math.isfinite(strength):
            raise SettingError(f"a strength must be a finite number, got {strength}")
    by_weight: dict[str, list[tuple[Delta, float]]] = {}
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
        deltas[weight_name] = _fused_weight(terms, rule)
    return Adapter(deltas, _fused_info(parts, name, how))


def _fused_weight(deltas: Sequence[tuple[Delta, float]], rule: Rule) -> SparseDelta:
    terms = [(delta.entries(), strength) for delta, strength in deltas]
    union = Union([delta.indices for delta, _ in terms])
    values = rule(union, [delta.values.float() * strength for delta, strength in terms])
    if not bool(values.isfinite().all()):
        raise SettingError("these strengths take the changes out of fp32's range; use smaller ones")
    return SparseDelta(union.keys, values, terms[0][0].shape)


def _fused_info(parts: Parts, name: str, how: str) -> AdapterInfo:
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
    methods = {info.method for info in infos}
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
        # Of low-rank parts the file says what it is itself, entries.
        method=methods.pop() if len(methods) == 1 and methods <= SPARSE else "shira",
        mask=joined(lambda info: info.mask),
        license=joined(lambda info: info.license),
        author=joined(lambda info: info.author),
        trigger_words=_unique(word for info in infos for word in info.trigger_words),
        tags=_unique(tag for info in infos for tag in info.tags),
        training={"fused": how + recipe},
    )


def _unique(words: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(word for word in words if word))
