"""How several adapters act on one model at once.

A rule either makes one adapter out of several, or holds the model under several mixes while a
picture is made. LoRAs take part as the exact dense change that they are.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from evaluation.plan import STYLE, Merge
from shira_diffusion import Adapter, AdapterSwitcher, fuse, schedule
from shira_diffusion.composite import composite
from shira_diffusion.fuse.parts import Parts
from shira_diffusion.schedule import Schedule, StepCallback

MERGED = "merged"


@dataclass(frozen=True, eq=False)
class Part:
    """An adapter of the mix by its name in the switcher, and what it has learned."""

    name: str
    kind: str
    adapter: Adapter


Fuse = Callable[[Parts, Mapping[str, float]], Adapter]
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
    "concept-first": ("share",),
    "hand-over": ("share", "end"),
    "alternate": (),
}
"""Every rule, and the numbers that it needs."""


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
    merged = fused(merge, parts, strength)
    for name, adapter in merged.items():
        switcher.add(name, adapter)
    try:
        if merge.rule in SCHEDULED and len(parts) > 1:
            timing = SCHEDULED[merge.rule](parts, strength, merge.numbers)
            with schedule.scheduled(switcher, timing, steps) as after_step:
                yield after_step
        elif merge.rule == "composite":
            mixes = [{name: strength} for name in merged]
            with composite(switcher, pipe.unet, mixes or [{}]):
                yield None
        else:
            alone = merge.rule in FUSED
            with switcher.using({name: 1.0 if alone else strength for name in merged}):
                yield None
    finally:
        for name in merged:
            switcher.remove(name)


def fused(merge: Merge, parts: Sequence[Part], strength: float) -> dict[str, Adapter]:
    """Return the adapters that go into the switcher: one, if the rule makes one of them all."""
    if merge.rule in FUSED and parts:
        weighted = [(part.adapter, strength) for part in parts]
        return {MERGED: FUSED[merge.rule](weighted, merge.numbers)}
    return {part.name: part.adapter for part in parts}
