"""Change what a file says about its adapter; the tensors stay what they are, byte for byte."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shira_diffusion import formats
from shira_diffusion.adapter import AdapterInfo
from shira_diffusion.formats import container, metadata

_OURS = ("modelspec.", metadata.INFO_KEY)
# What the file's writer adds by itself, and what no `AdapterInfo` holds.
_KEPT = ("modelspec.thumbnail",)


def relabel(
    source: Path,
    target: Path,
    changes: Mapping[str, Any],
    extra: Mapping[str, str],
) -> AdapterInfo:
    """Write the file `source` to `target` with its info changed; they may be one file.

    `changes` are fields of `AdapterInfo` and their new values, `extra`
    further metadata, such as `modelspec.thumbnail`. Works for every adapter that is
    one safetensors file, LoRAs of others included. Raises `FormatError` for a broken file.
    """
    info = dataclasses.replace(formats.load(source).info, **changes)
    file = container.read(source)
    kept = {
        key: value
        for key, value in file.metadata.items()
        if key in _KEPT or not key.startswith(_OURS)
    }
    container.write(target, file.tensors, {**kept, **metadata.encode(info), **extra})
    return info
