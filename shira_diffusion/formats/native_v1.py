"""Version 1 of the native file, which is read and no longer written.

For each weight `<name>.gaps` (uint8, see `gaps`) and `<name>.values` (fp16, bf16 or fp32, one per
entry); metadata `shira.shapes` (JSON, name -> shape).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from shira_diffusion.delta import SparseDelta
from shira_diffusion.errors import DeltaError, FormatError
from shira_diffusion.formats import container, gaps, layout, metadata

_SHAPES_KEY = "shira.shapes"
_GAPS, _VALUES = ".gaps", ".values"


def deltas(file: container.Container) -> dict[str, SparseDelta]:
    """The changes of every weight; raises `FormatError` or `DeltaError` for what is wrong."""
    shapes = _shapes(file.metadata)
    wanted = {name + ending for name in shapes for ending in (_GAPS, _VALUES)}
    container.require_names(file.tensors, wanted)
    return {name: _delta(name, shape, file.tensors) for name, shape in shapes.items()}


def _shapes(stated: Mapping[str, str]) -> dict[str, tuple[int, ...]]:
    shapes = metadata.parse_json(stated.get(_SHAPES_KEY, ""), _SHAPES_KEY)
    if not isinstance(shapes, dict):
        raise FormatError(f"{_SHAPES_KEY} is not a JSON object")
    return {name: layout.checked_shape(name, shape) for name, shape in shapes.items()}


def _delta(name: str, shape: tuple[int, ...], tensors: Mapping[str, Tensor]) -> SparseDelta:
    code, values = tensors[name + _GAPS], tensors[name + _VALUES]
    if code.dtype != torch.uint8 or code.dim() != 1 or values.dim() != 1:
        raise FormatError(f"the indices or values of {name!r} are not flat, or not of their type")
    try:
        indices = gaps.decode(code, values.numel(), math.prod(shape))
        return SparseDelta(indices, values, shape)
    except (FormatError, DeltaError) as error:
        raise FormatError(f"the weight {name!r}: {error}") from error
