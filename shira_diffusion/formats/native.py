"""The native file: gap-coded indices and values of every weight, about 3 bytes an entry.

Layout, version 2: for each dtype of values, "fp16", "bf16" or "fp32", the tensors `<dtype>.gaps`
(uint8, see `gaps`) and `<dtype>.values`, weight after weight in the order of their sorted names;
metadata `shira.version`, `shira.layout` (see `layout`), `shira.checksum`, `shira.density` and what
`metadata.encode` writes. There is no pickle in it. Files of version 1 are read too.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from shira_diffusion.adapter import Adapter
from shira_diffusion.delta import SparseDelta, bounds, index_dtype
from shira_diffusion.errors import DeltaError, FormatError
from shira_diffusion.formats import container, gaps, layout, metadata, native_v1
from shira_diffusion.formats.layout import Extent

VERSION = 2
VERSION_KEY = "shira.version"
_LAYOUT_KEY = "shira.layout"
_GROUPS = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
_WORDS = {dtype: word for word, dtype in _GROUPS.items()}
_ENTRIES_WORTH_A_THREAD = 500_000


def save(adapter: Adapter, path: str | Path) -> None:
    """Write `adapter`, all of it or nothing; values keep their dtype.

    Equal adapters give equal bytes. Raises `ShiraError` where the disk refuses.
    """
    groups: dict[str, dict[str, SparseDelta]] = {}
    for name, delta in adapter.entries.items():
        groups.setdefault(_WORDS[delta.values.dtype], {})[name] = delta
    tensors: dict[str, Tensor] = {}
    extents: dict[str, dict[str, Extent]] = {}
    for word, deltas in groups.items():
        codes = {name: gaps.encode(delta.indices) for name, delta in deltas.items()}
        tensors[f"{word}.gaps"] = torch.cat(list(codes.values()))
        tensors[f"{word}.values"] = torch.cat(
            [delta.values.detach().cpu() for delta in deltas.values()]
        )
        extents[word] = {
            name: Extent(delta.shape, delta.nnz, codes[name].numel())
            for name, delta in deltas.items()
        }
    stated = {
        **metadata.encode(adapter.info),
        VERSION_KEY: str(VERSION),
        _LAYOUT_KEY: layout.encode(extents),
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
            _check_content(file)
            raise
        _check_content(file)
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


def _check_content(file: container.Container) -> None:
    if file.metadata.get(container.CHECKSUM_KEY) != file.checksum:
        raise FormatError("its checksum is wrong: the file was damaged or edited")


def _adapter(file: container.Container, version: int) -> Adapter:
    info = metadata.decode(file.metadata)
    if info is None:
        raise FormatError(f"its metadata lack {metadata.INFO_KEY!r}")
    if version == 1:
        return Adapter(native_v1.deltas(file), info)
    groups = layout.decode(file.metadata.get(_LAYOUT_KEY, ""), _LAYOUT_KEY)
    _check_tensors(groups, file.tensors)
    deltas: dict[str, SparseDelta] = {}
    for word, extents in groups.items():
        code, values = file.tensors[f"{word}.gaps"], file.tensors[f"{word}.values"]
        for name, delta in _group(extents, code, values):
            if name in deltas:
                raise FormatError(f"{_LAYOUT_KEY} has the weight {name!r} twice")
            deltas[name] = delta
    return Adapter(deltas, info)


def _check_tensors(
    groups: Mapping[str, Mapping[str, Extent]], tensors: Mapping[str, Tensor]
) -> None:
    wanted = {f"{word}.{part}" for word in groups for part in ("gaps", "values")}
    for name in sorted(wanted ^ set(tensors)):
        fault = "is missing" if name in wanted else "belongs to no weight"
        raise FormatError(f"the tensor {name!r} {fault}")
    for word, extents in groups.items():
        code, values = tensors[f"{word}.gaps"], tensors[f"{word}.values"]
        if word not in _GROUPS or code.dtype != torch.uint8 or values.dtype != _GROUPS[word]:
            raise FormatError(f"the indices or values of {word!r} are not of their type")
        if code.dim() != 1 or values.dim() != 1:
            raise FormatError(f"the indices or values of {word!r} are not flat")
        sizes = sum(one.code for one in extents.values()), sum(one.nnz for one in extents.values())
        if sizes != (code.numel(), values.numel()):
            raise FormatError(
                f"{_LAYOUT_KEY} speaks of {sizes[1]} entries in {sizes[0]} bytes, but there are "
                f"{values.numel()} in {code.numel()}"
            )
        _require_finite(extents, values)


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


def _group(
    extents: Mapping[str, Extent], code: Tensor, values: Tensor
) -> Iterator[tuple[str, SparseDelta]]:
    """The changes whose values lie one after another in `values`; so do their indices.

    Weights are decoded in torch's number of threads: numpy lets the others work meanwhile.
    """
    kind = index_dtype(max((_numel(one) for one in extents.values()), default=0))
    indices = torch.empty(values.numel(), dtype=kind)
    codes = code.split([one.code for one in extents.values()])
    places = indices.split([one.nnz for one in extents.values()])
    jobs = list(zip(extents.items(), codes, places, strict=True))
    shares = min(torch.get_num_threads(), 1 + values.numel() // _ENTRIES_WORTH_A_THREAD)

    def run(share: int) -> None:
        for (name, one), own, out in jobs[share::shares]:
            try:
                gaps.decode_into(own.numpy(), out.numpy(), _numel(one))
            except FormatError as error:
                raise FormatError(f"the weight {name!r}: {error}") from error

    with ThreadPoolExecutor(shares) as pool:
        list(pool.map(run, range(shares)))
    parts = values.split([one.nnz for one in extents.values()])
    for (name, one), out, own_values in zip(extents.items(), places, parts, strict=True):
        own_indices = out.to(index_dtype(_numel(one)))
        yield name, SparseDelta.checked(own_indices, own_values, one.shape)


def _numel(extent: Extent) -> int:
    return math.prod(extent.shape)
