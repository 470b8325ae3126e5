"""The native file: gap-coded indices and values of every weight, about 3 bytes an entry.

Layout, version 1: for each weight `<name>.gaps` (uint8, see `gaps`) and `<name>.values` (fp16,
bf16 or fp32, one per entry); metadata `shira.version`, `shira.shapes` (JSON, name -> shape),
`shira.checksum`, `shira.density` and what `metadata.encode` writes. There is no pickle in it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shira_diffusion.adapter import Adapter
from shira_diffusion.delta import SparseDelta
from shira_diffusion.errors import DeltaError, FormatError
from shira_diffusion.formats import container, gaps, metadata

VERSION = 1
VERSION_KEY = "shira.version"
_SHAPES_KEY = "shira.shapes"
_GAPS, _VALUES = ".gaps", ".values"
# No weight is larger; a shape beyond this would overflow 64-bit indices.
_MOST_ENTRIES = 2**48


def save(adapter: Adapter, path: str | Path) -> None:
    """Write `adapter`, all of it or nothing; values keep their dtype.

    Equal adapters give equal bytes. Raises `ShiraError` where the disk refuses.
    """
    tensors: dict[str, Tensor] = {}
    for name, delta in adapter.entries.items():
        tensors[name + _GAPS] = gaps.encode(delta.indices)
        tensors[name + _VALUES] = delta.values.detach().cpu().contiguous().clone()
    shapes = {name: delta.shape for name, delta in adapter.deltas.items()}
    stated = {
        **metadata.encode(adapter.info),
        VERSION_KEY: str(VERSION),
        _SHAPES_KEY: json.dumps(shapes),
        "shira.density": f"{adapter.density:.6g}",
    }
    container.write(Path(path), tensors, stated)


def load(path: str | Path) -> Adapter:
    """Read an adapter, checking header, dtypes, shapes, bounds, order, finiteness and checksum.

    Raises `FormatError` with the file's name, what is wrong and what to do, and nothing else.
    """
    path = Path(path)
    file = container.read(path)
    try:
        _check_version(file.metadata)
        try:
            adapter = _adapter(file)
        except (FormatError, DeltaError):
            # What is damaged may look like anything; that it is damaged is the better answer.
            _check_content(file)
            raise
        _check_content(file)
        return adapter
    except (FormatError, DeltaError) as error:
        raise FormatError(f"{path}: {error}; copy or download it again, or save it anew") from error


def _check_version(stated: Mapping[str, str]) -> None:
    version = stated.get(VERSION_KEY)
    if version is None:
        raise FormatError(f"it is not a native adapter file, its metadata lack {VERSION_KEY!r}")
    if version == str(VERSION):
        return
    if version.isascii() and version.isdecimal() and len(version) < 10 and int(version) > VERSION:
        raise FormatError(
            f"it has format version {version}, this program reads up to {VERSION}; update SHiRA "
            "Studio to use it"
        )
    raise FormatError(f"there is no format version {version[:20]!r}")


def _check_content(file: container.Container) -> None:
    if file.metadata.get(container.CHECKSUM_KEY) != file.checksum:
        raise FormatError("its checksum is wrong: the file was damaged or edited")


def _adapter(file: container.Container) -> Adapter:
    info = metadata.decode(file.metadata)
    if info is None:
        raise FormatError(f"its metadata lack {metadata.INFO_KEY!r}")
    shapes = _shapes(file.metadata)
    _check_names(shapes, file.tensors)
    return Adapter(
        {name: _delta(name, shape, file.tensors) for name, shape in shapes.items()}, info
    )


def _shapes(stated: Mapping[str, str]) -> dict[str, tuple[int, ...]]:
    shapes = metadata.parse_json(stated.get(_SHAPES_KEY, ""), _SHAPES_KEY)
    if not isinstance(shapes, dict):
        raise FormatError(f"{_SHAPES_KEY} is not a JSON object")
    return {name: _shape(name, shape) for name, shape in shapes.items()}


def _shape(name: str, shape: Any) -> tuple[int, ...]:
    # bool is an int to Python, but true is no size.
    possible = isinstance(shape, list) and len(shape) <= 8 and all(type(n) is int for n in shape)
    if not possible or min(shape, default=0) < 0 or math.prod(shape) > _MOST_ENTRIES:
        raise FormatError(f"the weight {name!r} has an impossible shape")
    return tuple(shape)


def _check_names(shapes: Mapping[str, object], tensors: Mapping[str, Tensor]) -> None:
    wanted = {name + ending for name in shapes for ending in (_GAPS, _VALUES)}
    for name in sorted(wanted ^ set(tensors)):
        fault = "is missing" if name in wanted else "belongs to no weight"
        raise FormatError(f"the tensor {name!r} {fault}")


def _delta(name: str, shape: tuple[int, ...], tensors: Mapping[str, Tensor]) -> SparseDelta:
    code, values = tensors[name + _GAPS], tensors[name + _VALUES]
    if code.dtype != torch.uint8 or code.dim() != 1 or values.dim() != 1:
        raise FormatError(f"the indices or values of {name!r} are not flat, or not of their type")
    try:
        indices = gaps.decode(code, values.numel(), math.prod(shape))
        return SparseDelta(indices, values, shape)
    except (FormatError, DeltaError) as error:
        raise FormatError(f"the weight {name!r}: {error}") from error
