"""Change what a file says about its adapter; the tensors stay what they are, byte for byte."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shira_diffusion import formats, modelspec
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
    stated = {**_for_kohya(kept, before, info), **metadata.encode(info), **extra}
    container.write(target, file.tensors, stated)
    return info


def _for_kohya(stated: Mapping[str, str], before: AdapterInfo, info: AdapterInfo) -> dict[str, str]:
    """Metadata with kohya's keys as `info` has them, where they said what `before` says.

    What another trainer counted or named otherwise stays, and a file without the keys gets none.
    """
    if "ss_output_name" not in stated:
        return dict(stated)
    old, new = modelspec.kohya(before), modelspec.kohya(info)
    other = {key for key in {*old, *new} if old.get(key) != new.get(key)}
    changed = {key for key in other if stated.get(key) == old.get(key)}
    kept = {key: value for key, value in stated.items() if key not in changed}
    return {**kept, **{key: value for key, value in new.items() if key in changed}}
