"""A base with a mix of adapters written into it, as a whole checkpoint of its own."""

from __future__ import annotations

import json
import mmap
import secrets
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from shira_diffusion.adapter import Adapter, Delta
from shira_diffusion.errors import SettingError, ShiraError
from shira_diffusion.fitting import require_made_for
from shira_diffusion.formats import container
from shira_diffusion.formats.checkpoint import Checkpoint
from shira_diffusion.formats.names import COMPONENTS
from shira_diffusion.mixture import mixed
from shira_diffusion.progress import Progress

Mix = Sequence[tuple[Adapter, float]]

_WEIGHTS = frozenset({".safetensors", ".bin", ".ckpt", ".pt", ".pth", ".msgpack", ".h5", ".onnx"})


def bake(base: str | Path, mix: Mix, out: str | Path, progress: Progress | None = None) -> Path:
    """Write `base` with `mix` in it to `out`: a diffusers folder, or a single .safetensors file.

    The kind is the base's. Weights keep their dtype and have, bit for bit, the values of a model of
    that dtype under this mix; whatever else the base holds is copied. One tensor is in memory at
    a time. Raises `MismatchError` for adapters that do not fit, `SettingError` for an `out` that
    is there already, and then nothing is written.
    """
    checkpoint, target = Checkpoint(base), Path(out)
    if target.exists():
        raise SettingError(f"{target} is there already; choose another place or move it away")
    terms = _terms(checkpoint, mix)
    told = _Told(len(terms), progress)
    if not checkpoint.path.is_dir():
        _rewrite(checkpoint, Path(checkpoint.files[0]), terms, target, told)
        return target
    partial = target.with_name(f".{target.name}.{secrets.token_hex(4)}.partial")
    try:
        shutil.copytree(checkpoint.root, partial, ignore=_left_out(checkpoint))
        for file in checkpoint.files:
            _rewrite(checkpoint, file, terms, partial / file, told)
        partial.rename(target)
    except OSError as error:
        raise container.unwritable(target, error) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


class _Told:
    """How far it is, told after each weight."""

    def __init__(self, total: int, progress: Progress | None):
        self._done, self._total, self._progress = 0, total, progress

    def step(self) -> None:
        self._done += 1
        if self._progress is not None:
            self._progress(self._done, self._total)


def _terms(checkpoint: Checkpoint, mix: Mix) -> dict[str, list[tuple[Delta, float]]]:
    marks = checkpoint.fingerprints()
    terms: dict[str, list[tuple[Delta, float]]] = {}
    for adapter, strength in mix:
        require_made_for(adapter, checkpoint, marks)
        for name, delta in adapter.deltas.items():
            terms.setdefault(name, []).append((delta, strength))
    return terms


def _left_out(checkpoint: Checkpoint) -> Callable[[str, list[str]], Collection[str]]:
    """Weights that are written anew, and other copies of the same that would stay as they were."""

    def ignored(folder: str, entries: list[str]) -> Collection[str]:
        inner = Path(folder).relative_to(checkpoint.root).parts
        if inner and inner[0] not in COMPONENTS:
            return ()
        return [one for one in entries if Path(one).suffix in _WEIGHTS or ".fp16." in one]

    return ignored


def _rewrite(
    checkpoint: Checkpoint,
    file: Path,
    terms: Mapping[str, Sequence[tuple[Delta, float]]],
    target: Path,
    told: _Told,
) -> None:
    """One file with its changed weights, everything else byte for byte."""
    touched: dict[str, list[str]] = {}
    for name in terms:
        stored = checkpoint.places[name]
        if stored.file == file:
            touched.setdefault(stored.part.key, []).append(name)
    with (checkpoint.root / file).open("rb") as source:
        end = 8 + int.from_bytes(source.read(8), "little")
        source.seek(8)
        header: dict[str, Any] = json.loads(source.read(end - 8))
        stated = header.pop("__metadata__", {})
        entries = sorted(header.items(), key=lambda item: tuple(item[1]["data_offsets"]))
        header["__metadata__"] = {
            key: text for key, text in stated.items() if key != "modelspec.hash_sha256"
        }

        def tensors() -> Iterator[Tensor | memoryview]:
            with mmap.mmap(source.fileno(), 0, access=mmap.ACCESS_READ) as data:
                for key, entry in entries:
                    if key in touched:
                        yield _changed(checkpoint, touched[key], terms, told)
                        continue
                    start, stop = entry["data_offsets"]
                    # A copy, since a view would keep the map open.
                    yield memoryview(data[end + start : end + stop])

        container.stream(target, header, tensors())


def _changed(
    checkpoint: Checkpoint,
    members: Sequence[str],
    terms: Mapping[str, Sequence[tuple[Delta, float]]],
    told: _Told,
) -> Tensor:
    """The stored tensor with all its `members`, which lie in it, under the mix."""
    whole = checkpoint.read_stored(members[0]).clone()
    for name in members:
        part = checkpoint.places[name].part.of(whole)
        try:
            part.copy_(mixed(part, terms[name]))
        except ShiraError as error:
            raise type(error)(f"the weight {name!r}: {error}") from error
        told.step()
    return whole
