"""Reads a run's settings: a TOML preset and `key=value` overrides, all faults reported together.

A preset holds settings at its top level. A table named after a method (`[shira]`, `[lora]`) holds
what differs for that method and wins over the top level; overrides win over both.
"""

import json
import tomllib
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from training.checks import is_folder_name, nearest
from training.config import CONCEPT_FIELDS, FIELDS, METHODS, Concept, Config, resolve
from training.conflicts import conflicts
from training.errors import ConfigError, bullets

PRESETS = Path(__file__).parent / "presets"
TYPES = get_type_hints(Config)
_SCHEMES: dict[type, tuple[Mapping[str, Any], Mapping[str, Any]]] = {
    Config: (FIELDS, TYPES),
    Concept: (CONCEPT_FIELDS, get_type_hints(Concept)),
}


def load_config(preset: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a preset (a file, or the name of one of ours) and apply `key=value` overrides.

    Raises `ConfigError` that lists all faults at once.
    """
    path = find_preset(preset)
    table = read_preset(path)
    by_method = {name: table.pop(name) for name in METHODS if isinstance(table.get(name), dict)}
    faults = _Faults()
    settings = faults.check(str(path), table)
    tables = {name: faults.check(f"{path} [{name}]", by_method[name]) for name in by_method}
    given = faults.parse(overrides)
    method = given.get("method", settings.get("method", Config.method))
    settings |= tables.get(method, {}) | given
    if settings.get("concepts"):
        faults.check_concepts(settings)
    elif not settings.get("data"):
        faults.messages.append("data is missing: name the image folder with --set data=FOLDER")
    elif not settings.get("name"):
        faults.check_folder_as_name(settings["data"])
    faults.messages += conflicts({**settings, "method": method})
    if faults.messages:
        raise ConfigError(bullets("The settings have faults:", faults.messages))
    return resolve(Config(**settings))


def read_preset(preset: str | Path) -> dict[str, Any]:
    """Return what a preset's file says, unchecked; raises `ConfigError` if it is not TOML."""
    path = find_preset(preset)
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"The preset {path} is not valid TOML: {error}.") from error


def find_preset(preset: str | Path) -> Path:
    """Return the file of a preset given as a path or as the name of one that ships."""
    path = Path(preset)
    shipped = PRESETS / f"{path.name.removesuffix('.toml')}.toml"
    if path.is_file():
        return path
    if len(path.parts) == 1 and shipped.is_file():
        return shipped
    names = sorted(file.stem for file in PRESETS.glob("*.toml"))
    raise ConfigError(
        f"There is no preset {preset}{nearest(path.stem, names)}. Presets: {', '.join(names)}."
    )


class _Faults:
    """Checks settings one by one and collects what is wrong with them."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def check(self, source: str, table: Mapping[str, Any]) -> dict[str, Any]:
        """Return the valid entries of a TOML table, converted to the settings' types."""
        checked = {key: self._value(source, key, value) for key, value in table.items()}
        return {key: value for key, value in checked.items() if value is not None}

    def parse(self, overrides: Sequence[str]) -> dict[str, Any]:
        """Return the valid ones of `key=value` overrides; the last one of a key wins."""
        parsed = {}
        for text in overrides:
            key, equals, raw = (part.strip() for part in text.partition("="))
            if not equals:
                self.messages.append(f"--set {text}: write it as key=value")
                continue
            value = self._value(f"--set {text}", key, _literal(raw, TYPES.get(key, str)))
            if value is not None:
                parsed[key] = value
        return parsed

    def check_folder_as_name(self, data: str) -> None:
        """Check that the data folder's own name can be the adapter's."""
        folder = Path(data).resolve().name
        fault = is_folder_name(folder) if folder else "is empty"
        if fault:
            self.messages.append(
                f"data = {json.dumps(data)}: the folder's name, {json.dumps(folder)}, {fault}, so "
                "it cannot be the adapter's; set name="
            )

    def check_concepts(self, settings: Mapping[str, Any]) -> None:
        """Check what several concepts need and what they replace."""
        for key in ("data", "instance_prompt"):
            if settings.get(key):
                self.messages.append(f"{key} and concepts are both set: put {key} into a concept")
        if not settings.get("name"):
            self.messages.append("name is missing: several concepts need a name of their own")

    def _value(self, source: str, key: str, value: Any, owner: type = Config) -> Any:
        fields, types_ = _SCHEMES[owner]
        if key not in fields:
            self.messages.append(f"{source}: there is no setting {key}{nearest(key, fields)}")
            return None
        if key == "concepts":
            return self._concepts(source, value)
        converted = _convert(value, types_[key])
        fault = (
            f"is not {_describe(types_[key])}"
            if converted is None
            else fields[key].metadata["check"](converted)
        )
        if fault:
            self.messages.append(f"{source}: {key} = {json.dumps(value, default=str)} {fault}")
            return None
        return converted

    def _concepts(self, source: str, value: Any) -> tuple[Concept, ...] | None:
        if not isinstance(value, list) or not all(isinstance(table, dict) for table in value):
            self.messages.append(f"{source}: concepts is not a list of [[concepts]] tables")
            return None
        return tuple(
            self._concept(f"{source} [[concepts]] {number}", table)
            for number, table in enumerate(value, start=1)
        )

    def _concept(self, source: str, table: Mapping[str, Any]) -> Concept:
        if not table.get("data"):
            self.messages.append(f"{source}: data is missing: name the concept's image folder")
        checked = {key: self._value(source, key, value, Concept) for key, value in table.items()}
        return Concept(**{key: value for key, value in checked.items() if value is not None})


def _literal(raw: str, kind: Any) -> Any:
    """Read the text of an override the way the setting's type wants it."""
    if kind is str:
        return raw
    if get_origin(kind) is tuple and not raw.startswith("["):
        return [raw]
    try:
        return tomllib.loads(f"value = {raw}")["value"]
    except tomllib.TOMLDecodeError:
        return raw


def _convert(value: Any, kind: Any) -> Any:
    """Return `value` as `kind`, or None when it is of another type."""
    if isinstance(kind, types.UnionType):
        options = (_convert(value, option) for option in get_args(kind))
        return next((option for option in options if option is not None), None)
    if get_origin(kind) is tuple:
        words = isinstance(value, list) and all(isinstance(word, str) for word in value)
        return tuple(value) if words else None
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    return value if type(value) is kind else None


def _describe(kind: Any) -> str:
    names = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}
    if isinstance(kind, types.UnionType):
        return " or ".join(_describe(option) for option in get_args(kind))
    return names.get(kind, "a list of texts")
