"""Adapter files: which format a file has is told by its content, never by its name."""

from __future__ import annotations

from pathlib import Path

from shira_diffusion.adapter import Adapter, AdapterInfo
from shira_diffusion.errors import FormatError
from shira_diffusion.formats import container, lora, metadata, native

__all__ = ["load", "read_info"]


def load(path: str | Path) -> Adapter:
    """Read the adapter in a file: our native format, or a LoRA of diffusers or kohya.

    Raises `FormatError` for anything else, pickle files (.ckpt, .pt) included.
    """
    path = Path(path)
    is_native = _is_native(path, container.read_header(path))
    return native.load(path) if is_native else lora.load(path)


def read_info(path: str | Path) -> AdapterInfo:
    """What the adapter in a file says about itself, from the header alone.

    Raises `FormatError` for a file that `load` cannot read, unless only its tensors show that.
    """
    path = Path(path)
    header = container.read_header(path)
    is_native = _is_native(path, header)
    try:
        info = metadata.decode(header.metadata)
    except FormatError as error:
        raise FormatError(f"{path}: {error}; copy or download it again") from error
    if info is None and is_native:
        raise FormatError(f"{path}: its metadata lack {metadata.INFO_KEY!r}; save it anew")
    return info or lora.foreign_info(path, header.metadata)


def _is_native(path: Path, header: container.Header) -> bool:
    """Whether it is our own format rather than a LoRA; raises `FormatError` if it is neither."""
    if native.VERSION_KEY in header.metadata:
        return True
    if lora.is_lora(header.names):
        return False
    some = ", ".join(sorted(header.names)[:3]) or "no tensors at all"
    raise FormatError(
        f"{path}: it is neither a SHiRA adapter nor a LoRA (it holds {some}); a whole checkpoint "
        "belongs to --base"
    )
