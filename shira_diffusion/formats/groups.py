"""The vectors of a native file: for each dtype of values, those of all its weights in one piece."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from shira_diffusion.delta import SparseDelta, bounds, index_dtype
from shira_diffusion.errors import FormatError
from shira_diffusion.formats import container, layout, planes
from shira_diffusion.formats.layout import Extent

LAYOUT_KEY = "shira.layout"
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
WORDS = {dtype: word for word, dtype in DTYPES.items()}
_PARTS = ("gaps", "skips", "values")


@dataclass(frozen=True, eq=False)
class Group:
    """Weights in the order of their names, and the flat vectors that a file holds of them."""

    extents: Mapping[str, Extent]
    gaps: Tensor
    skips: Tensor
    values: Tensor


def deltas(file: container.Container) -> dict[str, SparseDelta]:
    """The changes of all weights; raises `FormatError` for what is wrong."""
    stated = layout.decode(file.metadata.get(LAYOUT_KEY, ""), LAYOUT_KEY)
    container.require_names(file.tensors, {f"{word}.{part}" for word in stated for part in _PARTS})
    changes: dict[str, SparseDelta] = {}
    for word, extents in stated.items():
        group = Group(extents, *(file.tensors[f"{word}.{part}"] for part in _PARTS))
        _check_types(word, group)
        _check_lengths(group)
        own = _split(group, planes.decode(extents, group.gaps, group.skips))
        for name in own.keys() & changes.keys():
            raise FormatError(f"{LAYOUT_KEY} has the weight {name!r} twice")
        _require_finite(group)
        changes |= own
    return changes


def _check_types(word: str, group: Group) -> None:
    codes = (group.gaps, group.skips)
    typed = all(code.dtype == torch.uint8 for code in codes)
    if word not in DTYPES or not typed or group.values.dtype != DTYPES[word]:
        raise FormatError(f"the indices or values of {word!r} are not of their type")
    if any(vector.dim() != 1 for vector in (*codes, group.values)):
        raise FormatError(f"the indices or values of {word!r} are not flat")


def _check_lengths(group: Group) -> None:
    stated = sum(one.nnz for one in group.extents.values())
    found = group.gaps.numel(), group.values.numel()
    if (stated, stated) != found:
        raise FormatError(
            f"{LAYOUT_KEY} speaks of {stated} entries, but there are {found[0]} gaps and "
            f"{found[1]} values"
        )


def _split(group: Group, indices: Tensor) -> dict[str, SparseDelta]:
    counts = [one.nnz for one in group.extents.values()]
    parts = zip(indices.split(counts), group.values.split(counts), strict=True)
    changes = {}
    for (name, one), (own, values) in zip(group.extents.items(), parts, strict=True):
        kind = index_dtype(one.numel)
        changes[name] = SparseDelta.checked(
            own if own.dtype == kind else own.to(kind), values, one.shape
        )
    return changes


def _require_finite(group: Group) -> None:
    if all(math.isfinite(end) for end in bounds(group.values)):
        return
    parts = group.values.split([one.nnz for one in group.extents.values()])
    name = next(
        name
        for name, part in zip(group.extents, parts, strict=True)
        if not bool(part.isfinite().all())
    )
    raise FormatError(
        f"the weight {name!r}: values hold NaN or infinity; the training that made them diverged"
    )
