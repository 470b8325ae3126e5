"""Read a native SHiRA file with nothing but what ComfyUI itself has installed.

The format is described in `shira_diffusion/formats/native.py`, `native_v1.py` and `native_v2.py` of
SHiRA Studio, whose reader and this one are tested on the same files.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
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
class _Piece:
    """What a file holds of one weight, not looked at yet."""

    name: str
    shape: Any
    gaps: np.ndarray
    values: Tensor


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
    if version not in _PIECES:
        raise BrokenFileError(f"it has format version {version[:20]!r}; update this node")
    if stated.get("shira.checksum") != _checksum(header, memoryview(data)[end:]):
        raise BrokenFileError("it was damaged or edited; copy or download it again")
    info = _json(stated, "shira.info")
    pieces = _PIECES[version](stated, tensors)
    words = info.get("trigger_words", [])
    return SparseFile(
        name=str(info.get("name", "")),
        base_model=str(info.get("base_model", "")),
        trigger_words=tuple(map(str, words)) if isinstance(words, list) else (),
        changes={one.name: _change(one) for one in sorted(pieces, key=lambda one: one.name)},
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


def _pieces_1(stated: dict[str, str], tensors: dict[str, Tensor]) -> Iterator[_Piece]:
    """Version 1: tensors of its own for each weight."""
    for name, shape in _json(stated, "shira.shapes").items():
        code, values = tensors.get(f"{name}.gaps"), tensors.get(f"{name}.values")
        if code is None or values is None:
            raise BrokenFileError(f"the indices or values of {name!r} are missing")
        yield _Piece(name, shape, code, values)


def _pieces_2(stated: dict[str, str], tensors: dict[str, Tensor]) -> Iterator[_Piece]:
    """Version 2: all weights of a dtype one after another, in the order of their names."""
    for group, tree in _json(stated, "shira.layout").items():
        leaves = sorted(_leaves(tree).items())
        code, values = tensors.get(f"{group}.gaps"), tensors.get(f"{group}.values")
        if code is None or values is None or code.dim() != 1 or values.dim() != 1:
            raise BrokenFileError(f"the vectors {group!r} are missing or not flat")
        entries, lengths = [one[1] for _, one in leaves], [one[2] for _, one in leaves]
        if (sum(entries), sum(lengths)) != (values.numel(), code.numel()):
            raise BrokenFileError(f"the vectors {group!r} are not as long as its weights")
        parts = zip(leaves, code.split(lengths), values.split(entries), strict=True)
        for (name, (shape, _, _)), own_code, own_values in parts:
            yield _Piece(name, shape, own_code, own_values)


def _leaves(tree: Any) -> dict[str, tuple[Any, int, int]]:
    """Shape, entries and bytes of code by name, of a tree of the names' parts."""
    found: dict[str, tuple[Any, int, int]] = {}
    waiting = list(tree.items()) if isinstance(tree, dict) else []
    while waiting:
        name, node = waiting.pop()
        if isinstance(node, dict):
            waiting += [(f"{name}.{part}", one) for part, one in node.items()]
        elif isinstance(node, list) and len(node) == 3 and all(map(_is_size, node[1:])):
            found[name] = (node[0], node[1], node[2])
        else:
            raise BrokenFileError(f"the weight {name!r} has no shape and sizes")
    return found


def _is_size(size: Any) -> bool:
    return type(size) is int and 0 <= size <= _MOST_ENTRIES


def _change(piece: _Piece) -> Change:
    name, code, values, shape = piece.name, piece.code, piece.values, piece.shape
    if not isinstance(shape, list) or len(shape) > 8 or not all(map(_is_size, shape)):
        raise BrokenFileError(f"the weight {name!r} has an impossible shape")
    numel = math.prod(shape)
    if numel > _MOST_ENTRIES:
        raise BrokenFileError(f"the weight {name!r} has an impossible shape")
    if code.dtype != torch.uint8 or values.dtype not in _VALUE_DTYPES or code.dim() != 1:
        raise BrokenFileError(f"the indices or values of {name!r} are not of their type")
    if values.dim() != 1 or not bool(values.isfinite().all()):
        raise BrokenFileError(f"the values of {name!r} are not flat and finite")
    return Change(_indices(name, code, values.numel(), numel), values, tuple(shape))


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
