"""A run's settings as text: as JSON in its folder, as differences on resuming, as help."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from training.config import CONCEPT_FIELDS, FIELDS, Config


def to_json(config: Config) -> str:
    """Return the resolved settings as JSON text."""
    return json.dumps(dataclasses.asdict(config), indent=2) + "\n"


def differences(before: Mapping[str, Any], config: Config) -> list[str]:
    """Say which settings that shape the training differ from those of the run's `config.json`.

    A run that is older than a setting has its default.
    """
    after = json.loads(to_json(config))
    earlier = json.loads(to_json(Config())) | dict(before)
    return [
        f"{key} was {earlier[key]!r}, now {after[key]!r}"
        for key, field in FIELDS.items()
        if not field.metadata["free"] and earlier[key] != after[key]
    ]


def describe_settings() -> str:
    """List every key with its default and meaning, for `--help`."""
    concepts = ["each [[concepts]] table has:", *_described(CONCEPT_FIELDS)]
    return "\n".join(["settings:", *_described(FIELDS), *concepts])


def _described(fields: Mapping[str, dataclasses.Field[Any]]) -> list[str]:
    return [
        f"  {key} = {json.dumps(field.default)}: {field.metadata['meaning']}"
        for key, field in fields.items()
    ]
