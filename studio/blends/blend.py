"""Several adapters into one: how each is thinned first, and what happens where they meet."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

import torch

from shira_diffusion import Adapter, SparseDelta, fuse
from shira_diffusion.cards import SPARSE
from shira_diffusion.errors import SettingError
from shira_diffusion.fuse.parts import Parts
from studio.library import AdapterLibrary, method_name
from studio.recipe import MAX_SEED, MAX_STRENGTH, MIN_STRENGTH

MAX_PARTS = 6
MAX_ENTRIES = 2**27
"""How many changed entries all parts together may have; each takes some 8 bytes, and once more."""
_FP16 = torch.finfo(torch.float16)


class Meeting(StrEnum):
    """What stands where several adapters change the same entry."""

    SUM = "sum"
    MEAN = "mean"
    STRONGEST = "strongest"
    TIES = "ties"


class Thinning(StrEnum):
    """Which entries of each adapter are kept before they meet."""

    NONE = "none"
    LARGEST = "largest"
    DARE = "dare"


@dataclass(frozen=True)
class Blend:
    """What to make: adapters with strengths, and how.

    `keep` is the share of each adapter that thinning leaves, `result_keep` that of the result that
    stays, its largest entries. Raises `SettingError` that lists every fault at once.
    """

    parts: Mapping[str, float]
    meeting: Meeting = Meeting.SUM
    thinning: Thinning = Thinning.NONE
    keep: float = 1.0
    result_keep: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        faults = []
        if not 2 <= len(self.parts) <= MAX_PARTS:
            faults.append(f"A blend takes 2 to {MAX_PARTS} adapters, not {len(self.parts)}.")
        faults += [
            f"The strength of {name!r} has to be from {MIN_STRENGTH:g} to {MAX_STRENGTH:g}, "
            f"not {strength:g}."
            for name, strength in self.parts.items()
            if not MIN_STRENGTH <= strength <= MAX_STRENGTH
        ]
        shares = {"kept of each adapter": self.keep, "kept of the result": self.result_keep}
        faults += [
            f"The share {what} has to be above 0 and at most 1, not {share:g}."
            for what, share in shares.items()
            if not 0 < share <= 1
        ]
        if not 0 <= self.seed <= MAX_SEED:
            faults.append(f"The seed has to be from 0 to {MAX_SEED}, not {self.seed}.")
        if faults:
            raise SettingError(" ".join(faults))

    def plain(self) -> dict[str, Any]:
        """The blend as JSON values, for `read`."""
        return dataclasses.asdict(self)

    @classmethod
    def read(cls, settings: Mapping[str, Any]) -> "Blend":
        """The blend that `plain` wrote."""
        ways = {"meeting": Meeting(settings["meeting"]), "thinning": Thinning(settings["thinning"])}
        return cls(**{**settings, **ways})

    @property
    def words(self) -> str:
        """How it is made, in a line."""
        share = f"{self.keep * 100:g} %"
        first = {
            Thinning.NONE: "",
            Thinning.LARGEST: f"the largest {share} of each, ",
            Thinning.DARE: f"DARE: {share} of each at random (seed {self.seed}), ",
        }[self.thinning if self.keep < 1 else Thinning.NONE]
        last = f", pruned to {self.result_keep * 100:g} %" if self.result_keep < 1 else ""
        name = "TIES" if self.meeting == Meeting.TIES else self.meeting
        return f"{first}{name}{last}"


def load_parts(library: AdapterLibrary, blend: Blend) -> dict[str, Adapter]:
    """The adapters of a blend by name; raises `SettingError` if they are too large together."""
    loaded: dict[str, Adapter] = {}
    for name in blend.parts:
        loaded[name] = library.load(library.find(name))
        entries = sum(one.nnz for one in loaded.values())
        if entries > MAX_ENTRIES:
            raise SettingError(
                f"These adapters change {entries / 1e6:.0f} million entries, and a blend takes at "
                f"most {MAX_ENTRIES / 1e6:.0f} million. {_remedy(loaded)}"
            )
    return loaded


def _remedy(loaded: Mapping[str, Adapter]) -> str:
    whole = [
        f"{name} ({method_name(adapter.info.method)})"
        for name, adapter in loaded.items()
        if adapter.info.method not in SPARSE
    ]
    if not whole:
        return "Blend fewer of them, or mix them in Generate."
    verb = "changes" if len(whole) == 1 else "change"
    return (
        f"{', '.join(whole)} {verb} every entry of the weights. Take a SHiRA adapter instead, or "
        "mix them in Generate, which needs no blend."
    )


def blended(blend: Blend, adapters: Mapping[str, Adapter], *, name: str) -> Adapter:
    """The blend of `adapters`, its values in fp16 where they fit, as files of adapters have them.

    Raises what `shira_diffusion.fuse` raises: other bases, other shapes, strengths out of range.
    """
    # One generator for all: the same draw for each adapter would drop the same entries.
    generator = torch.Generator().manual_seed(blend.seed)
    parts = [
        (_thinned(blend, adapters[part], generator), strength)
        for part, strength in sorted(blend.parts.items())
    ]
    made = _RULES[blend.meeting](parts, name)
    if blend.result_keep < 1:
        made = fuse.prune(made, blend.result_keep)
    info = dataclasses.replace(
        made.info,
        tags=tuple(dict.fromkeys((*made.info.tags, "blend"))),
        date=f"{datetime.now(UTC):%Y-%m-%d}",
        training={**made.info.training, "blend": blend.words},
    )
    return Adapter({key: _narrow(delta) for key, delta in made.entries.items()}, info)


def _thinned(blend: Blend, adapter: Adapter, generator: torch.Generator) -> Adapter:
    if blend.thinning == Thinning.LARGEST:
        return fuse.prune(adapter, blend.keep)
    if blend.thinning == Thinning.DARE:
        return fuse.dare(adapter, 1.0 - blend.keep, generator)
    return adapter


def _ties(parts: Parts, name: str) -> Adapter:
    return fuse.ties(parts, keep=1.0, name=name)


_RULES: Mapping[Meeting, Callable[[Sequence[tuple[Adapter, float]], str], Adapter]] = {
    Meeting.SUM: lambda parts, name: fuse.weighted_sum(parts, name=name),
    Meeting.MEAN: lambda parts, name: fuse.mean(parts, name=name),
    Meeting.STRONGEST: lambda parts, name: fuse.strongest(parts, name=name),
    Meeting.TIES: _ties,
}


def _narrow(delta: SparseDelta) -> SparseDelta:
    """The change without entries that are 0, in fp16 if its values fit."""
    kept = delta.values != 0
    values = delta.values[kept]
    fits = not values.numel() or float(values.abs().max()) <= _FP16.max
    return SparseDelta(delta.indices[kept], values.half() if fits else values, delta.shape)
