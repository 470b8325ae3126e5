"""The vectors of a native file: for each dtype of values, those of all its weights in one piece."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from shira_diffusion.delta import SparseDelta, bounds, index_dtype
from shira_diffusion.errors import FormatError
from shira_diffusion.formats import container, layout
from shira_diffusion.formats.layout import Extent

LAYOUT_KEY = "shira.layout"
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
WORDS = {dtype: word for word, dtype in DTYPES.items()}


@dataclass(frozen=True, eq=False)
class Group:
    """Weights in the order of their names, their flat finite `values`, and what codes the indices.

    `codes` are flat uint8 vectors, as many as the version of the format has.
    """

    extents: Mapping[str, Extent]
    codes: Sequence[Tensor]
    values: Tensor


def deltas(
    file: container.Container, parts: Sequence[str], sizes: int, decode: Callable[[Group], Tensor]
) -> dict[str, SparseDelta]:
    """The changes of all weights of a file whose codes are called `<dtype>.<part>`.

    `sizes` is how many the layout states of a weight; `decode` gives the checked indices of all
    weights of a group, one after another. Raises `FormatError` for what is wrong.
    """
    stated = layout.decode(file.metadata.get(LAYOUT_KEY, ""), LAYOUT_KEY, sizes)
    _check_names(stated, file.tensors, (*parts, "values"))
    changes: dict[str, SparseDelta] = {}
    for word, extents in stated.items():
        codes = [file.tensors[f"{word}.{part}"] for part in parts]
        values = file.tensors[f"{word}.values"]
        _check_types(word, codes, values)
        group = Group(extents, codes, values)
        own = _split(group, decode(group))
        for name in own.keys() & changes.keys():
            raise FormatError(f"{LAYOUT_KEY} has the weight {name!r} twice")
        _require_finite(extents, values)
        changes |= own
    return changes


def _check_names(
    stated: Mapping[str, object], tensors: Mapping[str, Tensor], parts: Sequence[str]
) -> None:
    wanted = {f"{word}.{part}" for word in stated for part in parts}
    for name in sorted(wanted ^ set(tensors)):
        fault = "is missing" if name in wanted else "belongs to no weight"
        raise FormatError(f"the tensor {name!r} {fault}")


def _check_types(word: str, codes: Sequence[Tensor], values: Tensor) -> None:
    typed = all(code.dtype == torch.uint8 for code in codes)
    if word not in DTYPES or not typed or values.dtype != DTYPES[word]:
        raise FormatError(f"the indices or values of {word!r} are not of their type")
    if any(vector.dim() != 1 for vector in (*codes, values)):
        raise FormatError(f"the indices or values of {word!r} are not flat")


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


def _require_finite(extents: Mapping[str, Extent], values: Tensor) -> None:
    if all(math.isfinite(end) for end in bounds(values)):
        return
    parts = values.split([one.nnz for one in extents.values()])
    name = next(
        name for name, part in zip(extents, parts, strict=True) if not bool(part.isfinite().all())
    )
    raise FormatError(
        f"the weight {name!r}: values hold NaN or infinity; the training that made them diverged"
    )
