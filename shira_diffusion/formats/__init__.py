"""Adapter files: which format a file or folder has is told by its content, never by its name."""

from __future__ import annotations

from enum import Enum
from pathlib import Path

from shira_diffusion.adapter import Adapter, AdapterInfo
from shira_diffusion.errors import FormatError
from shira_diffusion.formats import checkpoint, container, diff, lora, metadata, native, peft
from shira_diffusion.formats.sides import Shapes

__all__ = ["Kind", "kind", "load", "read_info"]

# What adapters' folders hold, in the order in which they are looked for.
_IN_FOLDERS = (peft.WEIGHTS, "adapter.safetensors", "pytorch_lora_weights.safetensors")


class Kind(Enum):
    """The formats of adapters that `load` reads."""

    NATIVE = "native"
    PEFT_SHIRA = "peft-shira"
    LORA = "lora"
    DIFF = "diff"


def load(path: str | Path, *, shapes: Shapes | None = None) -> Adapter:
    """Read the adapter in a file or folder, of any `Kind`, whole or not at all.

    `shapes` (by name, as the base has them) help with PEFT's SHiRA alone, which does not store
    them. Raises `FormatError` for anything else, pickle files (.ckpt, .pt) included.
    """
    file = _file(Path(path))
    match _kind(file, container.read_header(file)):
        case Kind.NATIVE:
            return native.load(file)
        case Kind.PEFT_SHIRA:
            return peft.load(file, shapes=shapes)
        case Kind.LORA:
            return lora.load(file)
        case Kind.DIFF:
            return diff.load(file)


def kind(path: str | Path) -> Kind:
    """The format of a file or folder; raises `FormatError` where `load` would for another."""
    file = _file(Path(path))
    return _kind(file, container.read_header(file))


def require_sha256(path: str | Path) -> None:
    """Raise `FormatError` for a file that is not what was written; slower than what `load` checks.

    Files of others, which state no SHA-256 of everything, pass.
    """
    file = _file(Path(path))
    try:
        container.read(file).require_sha256()
    except FormatError as error:
        raise FormatError(f"{file}: {error}; copy or download it again") from error


def read_info(path: str | Path) -> AdapterInfo:
    """What the adapter in a file says about itself, from the header alone.

    Raises `FormatError` for a file that `load` cannot read, unless only its tensors show that.
    """
    file = _file(Path(path))
    header = container.read_header(file)
    is_native = _kind(file, header) is Kind.NATIVE
    try:
        info = metadata.decode(header.metadata)
    except FormatError as error:
        raise FormatError(f"{file}: {error}; copy or download it again") from error
    if info is None and is_native:
        raise FormatError(f"{file}: its metadata lack {metadata.INFO_KEY!r}; save it anew")
    return info or metadata.foreign(file, header.metadata)


def _file(path: Path) -> Path:
    """The file that holds the tensors of the adapter in a folder, or `path` itself."""
    if not path.is_dir():
        return path
    for name in _IN_FOLDERS:
        if (path / name).is_file():
            return path / name
    if (path / checkpoint.INDEX).is_file():
        raise FormatError(
            f"{path}: it is a whole model, which belongs to --base; to make an adapter of a "
            "fine-tuned model, extract it with `shira extract`"
        )
    found = sorted(path.glob("*.safetensors"))
    if len(found) != 1:
        many = f"{len(found)} .safetensors files" if found else "no .safetensors file"
        raise FormatError(f"{path}: this folder holds {many}; name the adapter's file")
    return found[0]


def _kind(path: Path, header: container.Header) -> Kind:
    """What kind of adapter it is; raises `FormatError` if it is none."""
    if native.VERSION_KEY in header.metadata:
        return Kind.NATIVE
    if peft.is_shira(header.names):
        return Kind.PEFT_SHIRA
    if lora.is_lora(header.names):
        return Kind.LORA
    if diff.is_diff(header.names):
        return Kind.DIFF
    some = ", ".join(sorted(header.names)[:3]) or "no tensors at all"
    raise FormatError(
        f"{path}: it is neither a SHiRA adapter nor a LoRA (it holds {some}); a whole checkpoint "
        "belongs to --base"
    )
