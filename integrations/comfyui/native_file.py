"""Read a native SHiRA file with nothing but what ComfyUI itself has installed.

The format is described in `shira_diffusion/formats/native.py` of SHiRA Studio, whose reader and
this one are tested on the same files.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

_SKIP = 255
_MOST_ENTRIES = 2**48
# What safetensors raises for a broken file, and its torch binding for a dtype or shape unknown.
_UNREADABLE = (SafetensorError, AssertionError, KeyError, RuntimeError, TypeError, ValueError)
_VALUE_DTYPES = (torch.float16, torch.bfloat16, torch.float32)


class BrokenFileError(ValueError):
    """The file is not a whole native adapter; the message says why, and what to do."""


@dataclass(frozen=True)
class Change:
    """The change of one weight: flat `indices` (nnz,), `values` (nnz,) and the weight's shape."""

    indices: Tensor
    values: Tensor
    shape: tuple[int, ...]


@dataclass(frozen=True)
class SparseFile:
    """An adapter: its changes by diffusers' name of the weight, and what to tell its user."""

    name: str
    base_model: str
    trigger_words: tuple[str, ...]
    changes: dict[str, Change]


def read(path: str | Path) -> SparseFile:
    """Read and check the file; raises `BrokenFileError` and nothing else."""
    try:
        return _decode(Path(path).read_bytes())
    except OSError as error:
        raise BrokenFileError(f"{path}: it cannot be read ({error.strerror or error})") from error
    except BrokenFileError as error:
        raise BrokenFileError(f"{path}: {error}") from error


def _decode(data: bytes) -> SparseFile:
    try:
        tensors = safetensors.torch.load(data)
    except _UNREADABLE as error:
        raise BrokenFileError(
            f"it is no whole safetensors file ({error!r}); get it anew"
        ) from error
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    stated = header.get("__metadata__", {})
    version = stated.get("shira.version")
    if version is None:
        raise BrokenFileError("it is no SHiRA adapter; load a LoRA with 'Load LoRA'")
    if version != "1":
        raise BrokenFileError(f"it has format version {version[:20]!r}; update this node")
    if stated.get("shira.checksum") != _checksum(header, memoryview(data)[end:]):
        raise BrokenFileError("it was damaged or edited; copy or download it again")
    info = _json(stated, "shira.info")
    shapes = _json(stated, "shira.shapes")
    words = info.get("trigger_words", [])
    return SparseFile(
        name=str(info.get("name", "")),
        base_model=str(info.get("base_model", "")),
        trigger_words=tuple(map(str, words)) if isinstance(words, list) else (),
        changes={name: _change(name, shape, tensors) for name, shape in shapes.items()},
    )


def _checksum(header: dict[str, Any], body: memoryview) -> str:
    stated = {key: one for key, one in header["__metadata__"].items() if key != "shira.checksum"}
    text = json.dumps({**header, "__metadata__": stated}, sort_keys=True)
    digest = hashlib.sha256(text.encode())
    digest.update(body)
    return digest.hexdigest()


def _json(stated: dict[str, str], key: str) -> dict[str, Any]:
    try:
        value = json.loads(stated.get(key, ""))
    except (ValueError, RecursionError) as error:
        raise BrokenFileError(f"{key} is not readable JSON") from error
    if not isinstance(value, dict):
        raise BrokenFileError(f"{key} is not a JSON object")
    return value


def _change(name: str, shape: Any, tensors: dict[str, Tensor]) -> Change:
    sizes = shape if isinstance(shape, list) and all(type(size) is int for size in shape) else [-1]
    if min(sizes, default=0) < 0 or len(sizes) > 8 or math.prod(sizes) > _MOST_ENTRIES:
        raise BrokenFileError(f"the weight {name!r} has an impossible shape")
    code, values = tensors.get(f"{name}.gaps"), tensors.get(f"{name}.values")
    if code is None or values is None:
        raise BrokenFileError(f"the indices or values of {name!r} are missing")
    if code.dtype != torch.uint8 or values.dtype not in _VALUE_DTYPES or code.dim() != 1:
        raise BrokenFileError(f"the indices or values of {name!r} are not of their type")
    if values.dim() != 1 or not bool(values.isfinite().all()):
        raise BrokenFileError(f"the values of {name!r} are not flat and finite")
    return Change(_indices(name, code, values.numel(), math.prod(sizes)), values, tuple(sizes))


def _indices(name: str, code: Tensor, count: int, numel: int) -> Tensor:
    """A byte below 255 skips as many entries and marks the next one; 255 skips and marks none."""
    steps = code.numpy()
    marks = np.flatnonzero(steps != _SKIP)
    if marks.size != count or (steps.size and steps[-1] == _SKIP):
        raise BrokenFileError(f"the indices of {name!r} are not as many as its values")
    places = np.cumsum(steps, dtype=np.int64)[marks] + np.arange(marks.size)
    if marks.size and places[-1] >= numel:
        raise BrokenFileError(f"the indices of {name!r} leave their weight")
    return torch.from_numpy(places.astype(np.int32) if numel < 2**31 else places)
