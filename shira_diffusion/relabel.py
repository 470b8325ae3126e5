"""Change what a file says about its adapter; the tensors stay what they are, byte for byte."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shira_diffusion import formats
from shira_diffusion.adapter import AdapterInfo
from shira_diffusion.formats import container, metadata


def relabel(
    source: Path,
    target: Path,
    changes: Mapping[str, Any],
    extra: Mapping[str, str],
) -> AdapterInfo:
    """Write the file `source` to `target` with its info changed; they may be one file.

    `changes` are fields of `AdapterInfo` and their new values, `extra` further metadata, such as
    `modelspec.thumbnail`. Works for every adapter that is one safetensors file, LoRAs of others
    included, whose other metadata are kept. Raises `FormatError` for a broken file.
    """
    before = formats.load(source).info
    info = dataclasses.replace(before, **changes)
    file = container.read(source)
    outdated = metadata.encode(before)
    kept = {key: value for key, value in file.metadata.items() if key not in outdated}
    container.write(target, file.tensors, {**kept, **metadata.encode(info), **extra})
    return info
