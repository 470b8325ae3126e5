"""Turns TOML tables into frozen dataclasses by their types, and lists what does not fit."""

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from shira_diffusion.errors import nearest

T = TypeVar("T")


def build(kind: type[T], table: object, where: str, faults: list[str]) -> T | None:
    """Return the dataclass `kind` that a table describes, or None after noting faults."""
    if not isinstance(table, Mapping):
        faults.append(f"{where} is not a table")
        return None
    before = len(faults)
    hints = get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for key, value in table.items():
        if key not in fields:
            faults.append(f"{where}: there is no {key!r} ({nearest(key, fields)})")
            continue
        values[key] = convert(value, hints[key])
        if values[key] is None:
            faults.append(f"{where}: {key} = {value!r} is not {_words(hints[key])}")
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING
        if required and field.default_factory is dataclasses.MISSING and name not in table:
            faults.append(f"{where}: {name} is missing, {_words(hints[name])}")
    return None if len(faults) > before else kind(**values)


def convert(value: object, kind: Any) -> Any:
    """Return `value` as `kind`: text, number, mapping, or a tuple of these; None if it is not."""
    if get_origin(kind) is tuple:
        return _tuple(value, get_args(kind))
    if get_origin(kind) is not None:  # Mapping[str, ...]
        return dict(value) if isinstance(value, Mapping) else None
    if kind is float and type(value) is int:
        return float(value)
    return value if type(value) is kind else None


def _tuple(value: object, inner: tuple[Any, ...]) -> tuple[Any, ...] | None:
    if not isinstance(value, list):
        return None
    kinds = [inner[0]] * len(value) if inner[-1] is Ellipsis else list(inner)
    if len(kinds) != len(value):
        return None
    items = [convert(item, kind) for item, kind in zip(value, kinds, strict=True)]
    return None if any(item is None for item in items) else tuple(items)


def _words(kind: Any) -> str:
    named = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}
    if get_origin(kind) is tuple:
        inner = get_args(kind)
        each = named.get(inner[0], "a list of texts")
        return f"a list, each of them {each}" if inner[-1] is Ellipsis else f"a list of {each}s"
    return named.get(kind, "a table")
