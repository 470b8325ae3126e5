"""How several adapters act on one model at once.

A rule either makes one adapter out of several, or holds the model under several mixes while a
picture is made. LoRAs take part as the exact dense change that they are.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from evaluation.peft_changes import weighted
from evaluation.plan import STYLE, Merge
from shira_diffusion import Adapter, AdapterSwitcher, fuse, schedule
from shira_diffusion.composite import composite
from shira_diffusion.errors import SettingError
from shira_diffusion.fuse.parts import Parts
from shira_diffusion.schedule import Schedule, StepCallback

MERGED = "merged"
_UP = re.compile(r"unet\.up_blocks\.(\d+)\.")


@dataclass(frozen=True, eq=False)
class Part:
    """An adapter of the mix by its name in the switcher, what it has learned, and its file."""

    name: str
    kind: str
    adapter: Adapter
    file: Path


Fuse = Callable[[Parts, Mapping[str, float]], Adapter]
ByKind = Callable[[Sequence[Part], float, Mapping[str, float]], Adapter]
Timing = Callable[[Sequence[Part], float, Mapping[str, float]], Schedule]


def _ties(parts: Parts, numbers: Mapping[str, float]) -> Adapter:
    return fuse.ties(parts, keep=numbers["keep"], name=MERGED)


def _dare(parts: Parts, numbers: Mapping[str, float]) -> Adapter:
    """Thin every adapter with draws of its own, then add them."""
    thinned = [
        (fuse.dare(adapter, numbers["drop"], torch.Generator().manual_seed(place)), strength)
        for place, (adapter, strength) in enumerate(parts)
    ]
    return fuse.weighted_sum(thinned, name=MERGED)


def _pruned(parts: Parts, numbers: Mapping[str, float]) -> Adapter:
    kept = [(fuse.prune(adapter, numbers["keep"]), strength) for adapter, strength in parts]
    return fuse.weighted_sum(kept, name=MERGED)


def _late_styles(parts: Sequence[Part], strength: float, numbers: Mapping[str, float]) -> Adapter:
    """Leave of styles only what they change from the UNet's `up_blocks.<first>` on."""
    kept = [
        _late(part.adapter, numbers["first"]) if part.kind == STYLE else part.adapter
        for part in parts
    ]
    return fuse.weighted_sum([(adapter, strength) for adapter in kept], name=MERGED)


def _late(adapter: Adapter, first: float) -> Adapter:
    late = {
        name: delta
        for name, delta in adapter.deltas.items()
        if (stage := _UP.match(name)) and int(stage[1]) >= first
    }
    if not late:
        raise SettingError(f"{adapter.info.name!r} changes nothing from up_blocks.{first:g} on")
    return Adapter(late, adapter.info)


def _concept_first(
    parts: Sequence[Part], strength: float, numbers: Mapping[str, float]
) -> Schedule:
    """Let the concepts shape the picture, and bring the styles in after a share of the steps."""
    concepts = {part.name: strength for part in parts if part.kind != STYLE}
    return schedule.phases((0.0, concepts), (numbers["share"], _all(parts, strength)))


def _hand_over(parts: Sequence[Part], strength: float, numbers: Mapping[str, float]) -> Schedule:
    """Let the concepts begin and the styles alone end."""
    concepts = {part.name: strength for part in parts if part.kind != STYLE}
    styles = {part.name: strength for part in parts if part.kind == STYLE}
    return schedule.phases(
        (0.0, concepts), (numbers["share"], _all(parts, strength)), (numbers["end"], styles)
    )


def _alternate(parts: Sequence[Part], strength: float, _: Mapping[str, float]) -> Schedule:
    return schedule.alternate(*({part.name: strength} for part in parts))


def _all(parts: Sequence[Part], strength: float) -> dict[str, float]:
    return {part.name: strength for part in parts}


FUSED: Mapping[str, Fuse] = {
    "mean": lambda parts, _: fuse.mean(parts, name=MERGED),
    "strongest": lambda parts, _: fuse.strongest(parts, name=MERGED),
    "ties": _ties,
    "dare": _dare,
    "prune": _pruned,
}
BY_KIND: Mapping[str, ByKind] = {"late-styles": _late_styles}
SCHEDULED: Mapping[str, Timing] = {
    "concept-first": _concept_first,
    "hand-over": _hand_over,
    "alternate": _alternate,
}
NUMBERS: Mapping[str, tuple[str, ...]] = {
    "sum": (),
    "composite": (),
    "mean": (),
    "strongest": (),
    "ties": ("keep",),
    "dare": ("drop",),
    "prune": ("keep",),
    "late-styles": ("first",),
    "concept-first": ("share",),
    "hand-over": ("share", "end"),
    "alternate": (),
    "peft-linear": (),
    "peft-svd": (),
    "peft-cat": (),
    **{f"peft-{name}": ("density",) for name in ("ties", "dare_ties", "dare_linear")},
    "peft-magnitude_prune": ("density",),
}
"""Every rule, and the numbers that it needs."""


PEFT = "peft-"
"""Rules that are PEFT's `add_weighted_adapter` begin so, and go on with its combination type."""


@contextmanager
def applied(
    merge: Merge,
    pipe: Any,
    switcher: AdapterSwitcher,
    parts: Sequence[Part],
    strength: float,
    steps: int,
) -> Iterator[StepCallback | None]:
    """Hold the pipeline under the parts for a block; gives what it calls after each step, if any.

    Raises `ShiraError` for adapters that do not fit, and then nothing has changed.
    """
    merged = fused(merge, pipe, parts, strength) if len(parts) > 1 else None
    loaded = {MERGED: merged} if merged else {part.name: part.adapter for part in parts}
    mix = {MERGED: 1.0} if merged else _all(parts, strength)
    added: list[str] = []
    try:
        for name, adapter in loaded.items():
            switcher.add(name, adapter)
            added.append(name)
        if merge.rule in SCHEDULED and len(parts) > 1:
            timing = SCHEDULED[merge.rule](parts, strength, merge.numbers)
            with schedule.scheduled(switcher, timing, steps) as after_step:
                yield after_step
        elif merge.rule == "composite" and len(parts) > 1:
            with composite(switcher, pipe.unet, [{name: one} for name, one in mix.items()]):
                yield None
        else:
            with switcher.using(mix):
                yield None
    finally:
        for name in added:
            switcher.remove(name)


def fused(merge: Merge, pipe: Any, parts: Sequence[Part], strength: float) -> Adapter | None:
    """Return one adapter for all parts, at its strength already; None if the rule makes none."""
    if merge.rule in FUSED:
        return FUSED[merge.rule]([(part.adapter, strength) for part in parts], merge.numbers)
    if merge.rule in BY_KIND:
        return BY_KIND[merge.rule](parts, strength, merge.numbers)
    if merge.rule.startswith(PEFT):
        combination = merge.rule.removeprefix(PEFT)
        files, strengths = [part.file for part in parts], [strength] * len(parts)
        return weighted(pipe.unet, files, strengths, combination, merge.numbers.get("density"))
    return None
