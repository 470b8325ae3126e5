"""An adapter: the sparse changes of a model's weights, and what is known about them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from shira_diffusion.components import canonical_name, component_of
from shira_diffusion.delta import SparseDelta
from shira_diffusion.errors import DeltaError, SettingError
from shira_diffusion.lowrank import LowRankDelta

Delta = SparseDelta | LowRankDelta


@dataclass(frozen=True)
class AdapterInfo:
    """What an adapter is: its name, its base, how it was made, whose it is.

    `base_fingerprint` maps a component ("unet") to `fingerprint(module)` of the base; `strength`
    is the one that its author suggests, such as "0.8". All values are text; what is not known stays
    empty. Raises `SettingError` for anything else.
    """

    name: str
    title: str = ""
    base_model: str = ""
    base_fingerprint: Mapping[str, str] = field(default_factory=dict)
    method: str = "shira"
    mask: str = ""
    trigger_words: tuple[str, ...] = ()
    training: Mapping[str, str] = field(default_factory=dict)
    tags: tuple[str, ...] = ()
    license: str = ""
    author: str = ""
    description: str = ""
    date: str = ""
    strength: str = ""
    architecture: str = "stable-diffusion-xl-v1-base"
    implementation: str = "diffusers"

    def __post_init__(self) -> None:
        shapes = {
            "base_fingerprint": _pairs,
            "training": _pairs,
            "trigger_words": _words,
            "tags": _words,
        }
        for entry in dataclasses.fields(self):
            checked = shapes.get(entry.name, _text)
            object.__setattr__(self, entry.name, checked(entry.name, getattr(self, entry.name)))
        if not self.name:
            raise SettingError("an adapter needs a name")


@dataclass(frozen=True, eq=False)
class Adapter:
    """The change of every weight it touches, by the weight's name: sparse, or a LoRA's factors.

    Names carry the component (`unet.down_blocks.1...to_q.weight`) and are sorted; the mapping is
    read-only. Names of text encoders are stored with `text_model.`, see `canonical_name`.
    """

    deltas: Mapping[str, Delta]
    info: AdapterInfo

    def __post_init__(self) -> None:
        named = {canonical_name(name): delta for name, delta in self.deltas.items()}
        if len(named) != len(self.deltas):
            raise DeltaError("two names of this adapter mean the same weight; keep one of them")
        object.__setattr__(self, "deltas", MappingProxyType(dict(sorted(named.items()))))

    @property
    def nnz(self) -> int:
        """How many entries change, in all weights."""
        return sum(delta.nnz for delta in self.deltas.values())

    @property
    def density(self) -> float:
        """The share of changed entries among those of the touched weights."""
        numel = sum(delta.numel for delta in self.deltas.values())
        return self.nnz / numel if numel else 0.0

    @property
    def entries(self) -> Mapping[str, SparseDelta]:
        """The change as entries of each weight; a LoRA changes every one, at eight bytes each.

        Raises `DeltaError` for a DoRA, whose change depends on the base weight.
        """
        return {name: delta.entries() for name, delta in self.deltas.items()}

    @classmethod
    def load(cls, path: str | Path) -> Adapter:
        """Read an adapter of any format that `shira_diffusion.formats` knows, by content.

        Raises `FormatError` with the file's name, what is wrong with it and what to do.
        """
        # Formats build adapters, so only this call may look back at them.
        from shira_diffusion import formats

        return formats.load(path)

    def save(self, path: str | Path) -> None:
        """Write the native file, all of it or none; values keep their dtype."""
        from shira_diffusion.formats import native

        native.save(self, path)

    def for_base(self, fingerprints: Mapping[str, str]) -> Adapter:
        """The same adapter, declared fit for another base of the same architecture.

        `fingerprints` are that base's, as `AdapterSwitcher.fingerprints` gives them.
        """
        touched = {component_of(name, fingerprints) for name in self.deltas}
        fitting = {part: mark for part, mark in fingerprints.items() if part in touched}
        return Adapter(self.deltas, dataclasses.replace(self.info, base_fingerprint=fitting))


def _text(field_name: str, value: object) -> str:
    if not isinstance(value, str):
        raise SettingError(f"{field_name} must be text, got {value!r}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise SettingError(f"{field_name} is not valid Unicode: {value!r}") from error
    return value


def _words(field_name: str, value: object) -> tuple[str, ...]:
    if not isinstance(value, (tuple, list)):
        raise SettingError(f"{field_name} must be a sequence of texts, got {value!r}")
    return tuple(_text(field_name, word) for word in value)


def _pairs(field_name: str, value: object) -> Mapping[str, str]:
    if not isinstance(value, Mapping):
        raise SettingError(f"{field_name} must map text to text, got {value!r}")
    checked = {_text(field_name, key): _text(field_name, one) for key, one in value.items()}
    return MappingProxyType(checked)
