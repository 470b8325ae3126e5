"""Dense changes under kohya's names, `<layer>.diff`: what ComfyUI and A1111 read without a node.

Heavy: every entry of each touched weight is written, 1.9 GB in fp16 for SDXL's attention. A bias
is `<layer>.diff_b`.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shira_diffusion.adapter import Adapter
from shira_diffusion.delta import SparseDelta
from shira_diffusion.errors import DeltaError, FormatError, SettingError, ShiraError
from shira_diffusion.formats import container, metadata, names
from shira_diffusion.formats.kohya import Naming, flat_name
from shira_diffusion.modelspec import kohya
from shira_diffusion.progress import Progress, counted

_WEIGHT, _BIAS = ".diff", ".diff_b"
_DTYPES = {torch.float16: ("F16", 2), torch.bfloat16: ("BF16", 2), torch.float32: ("F32", 4)}


def is_diff(keys: Collection[str]) -> bool:
    """Whether tensors of these names are dense changes."""
    return any(key.endswith((_WEIGHT, _BIAS)) for key in keys)


def load(path: str | Path) -> Adapter:
    """Read dense changes; entries that are zero are left out. Raises `FormatError`."""
    path = Path(path)
    file = container.read(path)
    try:
        deltas: dict[str, SparseDelta] = {}
        for key, tensor in file.tensors.items():
            name = weight_name(key)
            if name is None:
                raise FormatError(f"{key!r} is no dense change of a weight")
            if name in deltas:
                raise FormatError(f"{key!r} is a second change of {name!r}")
            deltas[name] = delta(key, tensor)
        return Adapter(
            deltas, metadata.decode(file.metadata) or metadata.foreign(path, file.metadata)
        )
    except ShiraError as error:
        raise FormatError(f"{path}: {error}; get or write the file again") from error


def weight_name(key: str) -> str | None:
    """Our name for the weight or bias that the tensor `key` changes, None if it is no `.diff`."""
    for ending, last in ((_WEIGHT, "weight"), (_BIAS, "bias")):
        if key.endswith(ending):
            return f"{names.canonical(key.removesuffix(ending))}.{last}"
    return None


def delta(key: str, tensor: Tensor) -> SparseDelta:
    """The change that a dense tensor is, in the dtype that it has."""
    if tensor.dtype not in _DTYPES:
        raise FormatError(f"{key!r} is {tensor.dtype}, neither fp16, bf16 nor fp32")
    try:
        return SparseDelta.from_dense(tensor)
    except DeltaError as error:
        raise FormatError(f"{key!r}: {error}") from error


def size(adapter: Adapter, *, dtype: torch.dtype = torch.float16) -> int:
    """The bytes that the tensors of the file will have; its header comes on top."""
    return sum(one.numel for one in adapter.deltas.values()) * _width(dtype)[1]


def save(
    adapter: Adapter,
    path: str | Path,
    *,
    naming: Naming = Naming.SGM,
    dtype: torch.dtype = torch.float16,
    progress: Progress | None = None,
) -> int:
    """Write every change as a dense tensor; returns the file's size, see `size` for it beforehand.

    One weight is dense in memory at a time. Raises `FormatError` for weights that SDXL does not
    have, and `DeltaError` for a DoRA, before anything is written.
    """
    for one in adapter.deltas.values():
        one.require_no_base()
    keys = {_key(name, naming): name for name in adapter.deltas}
    header: dict[str, Any] = {}
    start = 0
    word, width = _width(dtype)
    for key, name in sorted(keys.items()):
        shape = adapter.deltas[name].shape
        end = start + math.prod(shape) * width
        header[key] = {"dtype": word, "shape": list(shape), "data_offsets": [start, end]}
        start = end
    stated = {**metadata.encode(adapter.info), **kohya(adapter.info), "format": "pt"}
    header["__metadata__"] = stated
    ordered = [name for _, name in sorted(keys.items())]
    dense = (
        _in_range(name, adapter.deltas[name].to_dense(), dtype)
        for name in counted(ordered, progress)
    )
    container.stream(Path(path), header, dense)
    return Path(path).stat().st_size


def _key(name: str, naming: Naming) -> str:
    layer, _, last = name.rpartition(".")
    ending = {"weight": _WEIGHT, "bias": _BIAS}.get(last)
    if ending is None:
        raise FormatError(f"the weight {name!r} has no name among kohya's")
    return flat_name(layer, naming) + ending


def _in_range(name: str, dense: Tensor, dtype: torch.dtype) -> Tensor:
    converted = dense.to(dtype)
    if not bool(converted.isfinite().all()):
        raise FormatError(f"the change of {name!r} leaves the range of {dtype}; write it in fp32")
    return converted


def _width(dtype: torch.dtype) -> tuple[str, int]:
    if dtype not in _DTYPES:
        raise SettingError(f"dense changes are fp16, bf16 or fp32, not {dtype}")
    return _DTYPES[dtype]
