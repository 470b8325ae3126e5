"""Read a native SHiRA file with nothing but what ComfyUI itself has installed.

The format is described in `shira_diffusion/formats/native.py` and `native_v1.py` of SHiRA
Studio, whose reader and this one are tested on the same files.
"""

from __future__ import annotations

import hashlib
import json
import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

_SKIP, _NONE = 256, 255
_MOST_ENTRIES = 2**48
# What safetensors raises for a broken file, and its torch binding for a dtype or shape unknown.
_UNREADABLE = (SafetensorError, AssertionError, KeyError, RuntimeError, TypeError, ValueError)
_VALUE_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
Numbers = np.ndarray[Any, np.dtype[np.int64]]


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
    """What a file holds of one weight; `gaps` (nnz,) are counted, the rest not looked at yet."""

    name: str
    shape: Any
    gaps: Numbers
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
    key = "shira.crc32" if "shira.crc32" in stated else "shira.checksum"
    if stated.get(key) != _checksum(key, header, memoryview(data)[end:]):
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


def _checksum(key: str, header: dict[str, Any], body: memoryview) -> str:
    """CRC-32 of everything else, or SHA-256 of everything but both."""
    stated = header["__metadata__"]
    covered = {name: one for name, one in stated.items() if name not in (key, "shira.crc32")}
    text = json.dumps({**header, "__metadata__": covered}, sort_keys=True).encode()
    if key == "shira.crc32":
        return f"{zlib.crc32(body, zlib.crc32(text)):08x}"
    digest = hashlib.sha256(text)
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
        code, values = _vectors(tensors, f"{name}.gaps", f"{name}.values")
        yield _Piece(name, shape, _gaps(code, values.numel(), name), values)


def _pieces_2(stated: dict[str, str], tensors: dict[str, Tensor]) -> Iterator[_Piece]:
    """Version 2: all weights of a dtype joined; gaps modulo 256, and whose 256 more there are."""
    for group, tree in _json(stated, "shira.layout").items():
        leaves = _leaves(tree)
        names = (f"{group}.{part}" for part in ("gaps", "skips", "values"))
        low, skips, values = _vectors(tensors, *names)
        entries = [leaf[1] for leaf in leaves.values()]
        if not sum(entries) == values.numel() == low.numel():
            raise BrokenFileError(f"the vectors {group!r} are not as long as its weights")
        owners = np.cumsum(_gaps(skips, int((skips != _NONE).sum()), group))
        if owners.size and owners[-1] >= low.numel():
            raise BrokenFileError(f"the skips of {group!r} go beyond its weights")
        gaps = low.numpy() + _SKIP * np.bincount(owners, minlength=low.numel())
        parts = zip(leaves.items(), values.split(entries), strict=True)
        for (name, leaf), own_values in parts:
            own, gaps = np.split(gaps, [own_values.numel()])
            yield _Piece(name, leaf[0], own, own_values)


_PIECES = {"1": _pieces_1, "2": _pieces_2}


def _vectors(tensors: dict[str, Tensor], *names: str) -> list[Tensor]:
    """Codes, uint8, and values last, all of them flat."""
    found = [tensors[name] for name in names if name in tensors]
    if len(found) != len(names) or any(vector.dim() != 1 for vector in found):
        raise BrokenFileError(f"the vectors {names} are missing or not flat")
    if any(code.dtype != torch.uint8 for code in found[:-1]):
        raise BrokenFileError(f"the vectors {names[:-1]} are not of their type")
    return found


def _leaves(tree: Any) -> dict[str, list[Any]]:
    """Shape and number of entries by name, names sorted, of a tree of the names' parts."""
    found: dict[str, list[Any]] = {}
    waiting = list(tree.items()) if isinstance(tree, dict) else []
    while waiting:
        name, node = waiting.pop()
        if isinstance(node, dict):
            waiting += [(f"{name}.{part}", one) for part, one in node.items()]
        elif isinstance(node, list) and len(node) == 2 and _is_size(node[1]):
            found[name] = node
        else:
            raise BrokenFileError(f"the weight {name!r} has no shape and number of entries")
    return dict(sorted(found.items()))


def _is_size(size: Any) -> bool:
    return type(size) is int and 0 <= size <= _MOST_ENTRIES


def _gaps(code: Tensor, count: int, name: str) -> Numbers:
    """A byte below 255 adds as much and ends a gap; 255 adds 255 and ends none."""
    steps = code.numpy()
    ends = np.flatnonzero(steps != _NONE)
    if ends.size != count or (steps.size and steps[-1] == _NONE):
        raise BrokenFileError(f"the indices of {name!r} are not as many as its values")
    return np.diff(np.cumsum(steps, dtype=np.int64)[ends], prepend=0)


def _change(piece: _Piece) -> Change:
    name, values, shape = piece.name, piece.values, piece.shape
    if not isinstance(shape, list) or len(shape) > 8 or not all(map(_is_size, shape)):
        raise BrokenFileError(f"the weight {name!r} has an impossible shape")
    numel = math.prod(shape)
    if numel > _MOST_ENTRIES:
        raise BrokenFileError(f"the weight {name!r} has an impossible shape")
    if values.dtype not in _VALUE_DTYPES or not bool(values.isfinite().all()):
        raise BrokenFileError(f"the values of {name!r} are not of their type and finite")
    places = np.cumsum(piece.gaps + 1) - 1
    if places.size and places[-1] >= numel:
        raise BrokenFileError(f"the indices of {name!r} leave their weight")
    indices = torch.from_numpy(places.astype(np.int32) if numel < 2**31 else places)
    return Change(indices, values, tuple(shape))
