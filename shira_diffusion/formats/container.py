"""safetensors files: checked reading and all-or-nothing writing."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from shira_diffusion.errors import FormatError, ShiraError

CHECKSUM_KEY = "shira.checksum"
_HASH_KEY = "modelspec.hash_sha256"
_METADATA = "__metadata__"
_PICKLES = frozenset({".ckpt", ".pt", ".pth", ".bin", ".pkl", ".pickle"})


@dataclass(frozen=True)
class Header:
    """What a file says it holds: the names of its tensors, and its metadata."""

    names: frozenset[str]
    metadata: Mapping[str, str]


@dataclass(frozen=True, eq=False)
class Container:
    """A file in memory."""

    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]
    hashing: Future[str]

    @property
    def checksum(self) -> str:
        """That of its content, whatever `metadata` claims; waits until it is known."""
        return self.hashing.result()


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
    # Another core hashes while this one reads the tensors and the caller decodes.
    pool = ThreadPoolExecutor(1)
    try:
        data = path.read_bytes()
        hashing = pool.submit(lambda: _checksum(*_split(data)))
        tensors = safetensors.torch.load(data)
    except (OSError, SafetensorError) as error:
        raise _unreadable(path, error) from error
    except (AssertionError, KeyError, RuntimeError, TypeError, ValueError) as error:
        # What safetensors' torch binding raises for a dtype or shape that torch does not know.
        raise FormatError(
            f"{path}: it holds a tensor that torch cannot read ({error!r}); get the file again"
        ) from error
    finally:
        pool.shutdown(wait=False)
    header, _ = _split(data)
    return Container(tensors, header.get(_METADATA, {}), hashing)


def write(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a file that is either complete or not there; equal content gives equal bytes.

    Adds ModelSpec's hash of the tensors and a checksum over everything. A missing folder is made.
    Raises `ShiraError` where the disk refuses.
    """
    header, body = _split(safetensors.torch.save(dict(tensors)))
    header[_METADATA] = {**metadata, _HASH_KEY: f"0x{hashlib.sha256(body).hexdigest()}"}
    header[_METADATA][CHECKSUM_KEY] = _checksum(header, body)
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


def _split(data: bytes) -> tuple[dict[str, Any], memoryview]:
    """The header as JSON and the tensors' bytes, of data that safetensors has accepted."""
    end = 8 + int.from_bytes(data[:8], "little")
    return json.loads(data[8:end]), memoryview(data)[end:]


def _checksum(header: Mapping[str, Any], body: memoryview) -> str:
    """SHA-256 of header and tensors, without the checksum itself and however JSON is spaced."""
    stated = {key: one for key, one in header.get(_METADATA, {}).items() if key != CHECKSUM_KEY}
    text = json.dumps({**header, _METADATA: stated}, sort_keys=True)
    digest = hashlib.sha256(text.encode())
    digest.update(body)
    return digest.hexdigest()


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
