"""Adapter files: which format a file has is told by its content, never by its name."""

from __future__ import annotations

from pathlib import Path

from shira_diffusion.adapter import Adapter
from shira_diffusion.errors import FormatError
from shira_diffusion.formats import container, lora, native

__all__ = ["load"]


def load(path: str | Path) -> Adapter:
    """Read the adapter in a file: our native format, or a LoRA of diffusers or kohya.

    Raises `FormatError` for anything else, pickle files (.ckpt, .pt) included.
    """
    path = Path(path)
    header = container.read_header(path)
    if native.VERSION_KEY in header.metadata:
        return native.load(path)
    if lora.is_lora(header.names):
        return lora.load(path)
    some = ", ".join(sorted(header.names)[:3]) or "no tensors at all"
    raise FormatError(
        f"{path}: it is neither a SHiRA adapter nor a LoRA (it holds {some}); a whole checkpoint "
        "belongs to --base"
    )
