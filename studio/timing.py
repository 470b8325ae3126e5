"""When each adapter of a mix works: at every step, in one half of them, or in turns."""

from collections.abc import Mapping
from enum import StrEnum

from shira_diffusion.schedule import Mix, Schedule, alternate, phases


class Timing(StrEnum):
    """The steps at which an adapter is in the weights.

    Early steps settle shapes, late ones surfaces: a concept early and a style late keep out of
    each other's way. Those that alternate take turns, a step each.
    """

    ALWAYS = "always"
    EARLY = "early"
    LATE = "late"
    ALTERNATE = "alternate"


HALF = 0.5
"""Which share of the steps is early."""


def schedule(mix: Mapping[str, float], timing: Mapping[str, str]) -> Schedule:
    """What is in the weights at each step; adapters that `timing` does not name always are."""

    def those(*when: Timing) -> Mix:
        return {
            name: strength
            for name, strength in mix.items()
            if timing.get(name, Timing.ALWAYS) in when
        }

    steady = phases(
        (0.0, those(Timing.ALWAYS, Timing.EARLY)), (HALF, those(Timing.ALWAYS, Timing.LATE))
    )
    turns = [{name: strength} for name, strength in those(Timing.ALTERNATE).items()]
    if not turns:
        return steady
    turn = alternate(*turns)
    return lambda step, steps: {**steady(step, steps), **turn(step, steps)}
