"""safetensors files: checked reading and all-or-nothing writing."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Callable, Iterable, Mapping, Set
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from shira_diffusion.errors import FormatError, ShiraError
from shira_diffusion.formats import checksum, memory
from shira_diffusion.formats.checksum import METADATA

_HASH_KEY = "modelspec.hash_sha256"
# What safetensors' torch binding raises for a dtype or shape that torch does not know.
_UNKNOWN_TO_TORCH = (AssertionError, AttributeError, KeyError, RuntimeError, TypeError, ValueError)
_DAMAGED = "its checksum is wrong: the file was damaged or edited"
_PICKLES = frozenset({".ckpt", ".pt", ".pth", ".bin", ".pkl", ".pickle"})


@dataclass(frozen=True)
class Header:
    """What a file says it holds: the names of its tensors, and its metadata."""

    names: frozenset[str]
    metadata: Mapping[str, str]


@dataclass(frozen=True, eq=False)
class Container:
    """A file in memory: its header, and its tensors in the order in which they lie in it.

    `checking` ends with whether the content has the checksum that the header states.
    """

    tensors: Mapping[str, Tensor]
    header: Mapping[str, Any]
    checking: Future[bool]

    @property
    def metadata(self) -> Mapping[str, str]:
        """The metadata in the header."""
        stated: Mapping[str, str] = self.header.get(METADATA, {})
        return stated

    def require_intact(self) -> None:
        """Raise `FormatError` for a damaged file, and for one without a checksum; may wait."""
        if not self.checking.result():
            raise FormatError(_DAMAGED)

    def require_sha256(self) -> None:
        """Raise `FormatError` where a SHA-256 is stated that the content does not have."""
        if checksum.SHA256 in self.metadata:
            digest = checksum.begin(checksum.SHA256, self.header)
            for tensor in self.tensors.values():
                digest.update(raw(tensor))
            if digest.hexdigest() != self.metadata[checksum.SHA256]:
                raise FormatError(_DAMAGED)


def read_header(path: Path) -> Header:
    """The header alone, which also tells a large checkpoint without reading it."""
    _refuse_pickle(path)
    try:
        with safe_open(path, framework="pt") as file:
            return Header(frozenset(file.keys()), dict(file.metadata() or {}))
    except (OSError, SafetensorError) as error:
        raise _unreadable(path, error) from error


def read(path: Path) -> Container:
    """The whole file; safetensors checks every size in the header before any tensor is made."""
    _refuse_pickle(path)
    # Another core takes the checksum of what is read while this one reads on and decodes.
    pool = ThreadPoolExecutor(1)
    try:
        with safe_open(path, framework="pt") as checked, path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
            key = checksum.stated(header)
            digest = checksum.begin(key, header) if key else None
            tensors = {}
            for name in checked.offset_keys():
                tensors[name], content = _copy(checked.get_tensor(name), file)
                if digest:
                    pool.submit(digest.update, content)
            checking = pool.submit(
                lambda: digest is not None and digest.hexdigest() == header[METADATA][key]
            )
    except (OSError, SafetensorError) as error:
        raise _unreadable(path, error) from error
    except _UNKNOWN_TO_TORCH as error:
        raise FormatError(
            f"{path}: it holds a tensor that torch cannot read ({error!r}); get the file again"
        ) from error
    finally:
        pool.shutdown(wait=False)
    return Container(tensors, header, checking)


def require_names(tensors: Mapping[str, Tensor], wanted: Set[str]) -> None:
    """Raise `FormatError` where a file of ours has others than the `wanted` tensors."""
    for name in sorted(wanted ^ tensors.keys()):
        fault = "is missing" if name in wanted else "belongs to no weight"
        raise FormatError(f"the tensor {name!r} {fault}")


def _copy(mapped: Tensor, file: BufferedReader) -> tuple[Tensor, memoryview]:
    """The next tensor in `file`, of the size of `mapped`, and its bytes.

    Read, not mapped: what is hashed, checked and used is one and the same, whatever becomes of the
    file.
    """
    flat = memory.empty(mapped.nbytes, torch.uint8)
    content = flat.numpy().data
    if file.readinto(content) != mapped.nbytes:
        raise OSError("it became shorter while it was read")
    return flat.view(mapped.dtype).reshape(mapped.shape), content


def write(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a file that is either complete or not there; equal content gives equal bytes.

    Adds ModelSpec's hash of the tensors and a checksum over everything, see `checksum`. A missing
    folder is made. Raises `ShiraError` where the disk refuses.
    """
    data = safetensors.torch.save(dict(tensors))
    end = 8 + int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8:end]), memoryview(data)[end:]
    header[METADATA] = {**metadata, _HASH_KEY: f"0x{hashlib.sha256(body).hexdigest()}"}
    checksum.fill(header, body)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _replace(path, lambda file: file.writelines((_head(header), body)))
    except OSError as error:
        raise unwritable(path, error) from error


def stream(path: Path, header: Mapping[str, Any], tensors: Iterable[Tensor | memoryview]) -> None:
    """Write a file as `write` does, with one tensor in memory at a time.

    `header` is a safetensors header; `tensors` come in the order of its data offsets, raw bytes
    for those that need no change. Without the checksums that need the content beforehand.
    """

    def write_all(file: BinaryIO) -> None:
        file.write(_head(header))
        for tensor in tensors:
            file.write(tensor if isinstance(tensor, memoryview) else raw(tensor))

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _replace(path, write_all)
    except OSError as error:
        raise unwritable(path, error) from error


def write_text(path: Path, text: str) -> None:
    """Write a text file that is either complete or not there."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _replace(path, lambda file: file.writelines((text.encode(),)))
    except OSError as error:
        raise unwritable(path, error) from error


def raw(tensor: Tensor) -> memoryview:
    """The bytes of a tensor, row after row."""
    flat = tensor.detach().cpu().contiguous().view(-1)
    return flat.view(torch.uint8).numpy().data


def unwritable(path: Path, error: OSError) -> ShiraError:
    """What to say when the disk refuses."""
    return ShiraError(
        f"{path}: it cannot be written ({error.strerror or error}); check the folder's rights "
        "and the free space"
    )


def _head(header: Mapping[str, Any]) -> bytes:
    text = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _replace(path: Path, write_to: Callable[[BinaryIO], None]) -> None:
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        with partial.open("xb") as file:
            write_to(file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _refuse_pickle(path: Path) -> None:
    if path.suffix.lower() in _PICKLES:
        raise FormatError(
            f"{path}: a {path.suffix} file may run any program when it is opened, so it is not "
            "read; get the adapter as .safetensors"
        )


def _unreadable(path: Path, error: OSError | SafetensorError) -> FormatError:
    if isinstance(error, FileNotFoundError):
        return FormatError(f"{path}: there is no such file; check the path")
    if isinstance(error, OSError):
        return FormatError(f"{path}: it cannot be read ({error.strerror or error})")
    return FormatError(
        f"{path}: it is not a whole safetensors file ({error}); copy or download it again"
    )
