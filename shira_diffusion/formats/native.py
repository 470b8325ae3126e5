"""The native file: gap-coded indices and values of every weight, about 3 bytes an entry.

Layout, version 2: for each dtype of values, "fp16", "bf16" or "fp32", the tensors `<dtype>.gaps`
and `<dtype>.skips` (uint8, see `planes`) and `<dtype>.values`, weight after weight in the order of
their sorted names; metadata `shira.version`, `shira.layout` (see `layout`; a leaf is
`[shape, entries]`), `shira.density`, what `metadata.encode` writes, and checksums (see `checksum`).
There is no pickle in it. Files of version 1 are read too.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from shira_diffusion.adapter import Adapter
from shira_diffusion.delta import SparseDelta
from shira_diffusion.errors import DeltaError, FormatError
from shira_diffusion.formats import (
    checksum,
    container,
    groups,
    layout,
    metadata,
    native_v1,
    planes,
)
from shira_diffusion.formats.layout import Extent

VERSION = 2
VERSION_KEY = "shira.version"


def save(adapter: Adapter, path: str | Path) -> None:
    """Write `adapter`, all of it or nothing; values keep their dtype.

    Equal adapters give equal bytes. Raises `ShiraError` where the disk refuses.
    """
    changes: dict[str, dict[str, SparseDelta]] = {}
    for name, delta in adapter.entries.items():
        changes.setdefault(groups.WORDS[delta.values.dtype], {})[name] = delta
    tensors: dict[str, Tensor] = {}
    extents: dict[str, dict[str, Extent]] = {}
    for word, deltas in changes.items():
        low, skips = planes.encode(delta.indices for delta in deltas.values())
        values = torch.cat([delta.values.detach().cpu() for delta in deltas.values()])
        tensors |= {f"{word}.gaps": low, f"{word}.skips": skips, f"{word}.values": values}
        extents[word] = {name: Extent(delta.shape, delta.nnz) for name, delta in deltas.items()}
    stated = {
        **metadata.encode(adapter.info),
        VERSION_KEY: str(VERSION),
        checksum.CRC32: "",
        groups.LAYOUT_KEY: layout.encode(extents),
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
        version = _version(file.metadata)
        try:
            adapter = _adapter(file, version)
        except (FormatError, DeltaError):
            # What is damaged may look like anything; that it is damaged is the better answer.
            file.require_intact()
            raise
        file.require_intact()
        return adapter
    except (FormatError, DeltaError) as error:
        raise FormatError(f"{path}: {error}; copy or download it again, or save it anew") from error


def _version(stated: Mapping[str, str]) -> int:
    version = stated.get(VERSION_KEY)
    if version is None:
        raise FormatError(f"it is not a native adapter file, its metadata lack {VERSION_KEY!r}")
    if not (version.isascii() and version.isdecimal() and len(version) < 10 and int(version)):
        raise FormatError(f"there is no format version {version[:20]!r}")
    if int(version) > VERSION:
        raise FormatError(
            f"it has format version {version}, this program reads up to {VERSION}; update SHiRA "
            "Studio to use it"
        )
    return int(version)


def _adapter(file: container.Container, version: int) -> Adapter:
    info = metadata.decode(file.metadata)
    if info is None:
        raise FormatError(f"its metadata lack {metadata.INFO_KEY!r}")
    deltas = native_v1.deltas if version == 1 else groups.deltas
    return Adapter(deltas(file), info)
