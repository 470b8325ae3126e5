"""What a file says about the adapter in it: ours as JSON, and ModelSpec 1.0.1 for other tools."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shira_diffusion.adapter import AdapterInfo
from shira_diffusion.errors import FormatError, ShiraError
from shira_diffusion.modelspec import modelspec

INFO_KEY = "shira.info"


def encode(info: AdapterInfo) -> dict[str, str]:
    """The safetensors metadata for `info`; `decode` is its inverse.

    Next to our own key stand those that other programs show, see `modelspec`.
    """
    return {INFO_KEY: json.dumps(_plain(info), sort_keys=True), **modelspec(info)}


def decode(metadata: Mapping[str, str]) -> AdapterInfo | None:
    """The `AdapterInfo` that `encode` wrote, or None where it wrote nothing.

    Fields that a later version added are passed over. Raises `FormatError` for a value that is
    not what its field holds.
    """
    text = metadata.get(INFO_KEY)
    if text is None:
        return None
    stored = parse_json(text, INFO_KEY)
    if not isinstance(stored, dict):
        raise FormatError(f"{INFO_KEY} is not a JSON object")
    fields = {field.name for field in dataclasses.fields(AdapterInfo)}
    known = {key: value for key, value in stored.items() if key in fields}
    try:
        return AdapterInfo(**known)
    except (ShiraError, TypeError) as error:
        raise FormatError(f"{INFO_KEY} is damaged: {error}") from error


def foreign(path: Path, stated: Mapping[str, str]) -> AdapterInfo:
    """What a LoRA that we did not write says about itself, by ModelSpec's and kohya's keys."""

    def spec(key: str) -> str:
        return stated.get(f"modelspec.{key}", "")

    def words(key: str) -> tuple[str, ...]:
        return tuple(word.strip() for word in spec(key).split(",") if word.strip())

    return AdapterInfo(
        name=stated.get("ss_output_name") or path.stem,
        title=spec("title"),
        base_model=stated.get("ss_base_model_version", ""),
        method="lora",
        trigger_words=words("trigger_phrase"),
        tags=words("tags"),
        license=spec("license"),
        author=spec("author"),
        description=spec("description"),
        date=spec("date"),
    )


def parse_json(text: str, what: str) -> Any:
    """`json.loads` of text that may be hostile; any fault becomes a `FormatError` naming `what`."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{what} is not readable JSON") from error


def _plain(info: AdapterInfo) -> dict[str, object]:
    values = {field.name: getattr(info, field.name) for field in dataclasses.fields(info)}
    return {
        key: dict(value) if isinstance(value, Mapping) else value for key, value in values.items()
    }
