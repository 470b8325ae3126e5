"""Mixes that change while a picture is made: a switch is cheap enough for one at every step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

from shira_diffusion.errors import SettingError
from shira_diffusion.switch import AdapterSwitcher

Mix = Mapping[str, float]
Schedule = Callable[[int, int], Mix]
"""From a denoising step, 0 to steps - 1, and the number of steps to that step's mix."""
StepCallback = Callable[[Any, int, Any, dict[str, Any]], dict[str, Any]]
"""Called by diffusers after each step with pipeline, step, timestep and tensors; returns these."""


def phases(*parts: tuple[float, Mix]) -> Schedule:
    """One mix after another, each from its share of the steps on: 0 is the first step.

    `phases((0.0, {"robot": 1.0}), (0.4, {"robot": 1.0, "ink": 0.8}))` settles the shapes first and
    brings the style in later. Raises `SettingError` unless shares rise from 0 and stay below 1.
    """
    shares = [share for share, _ in parts]
    rising = all(one < other for one, other in pairwise(shares))
    if not parts or shares[0] != 0.0 or not rising or not shares[-1] < 1.0:
        raise SettingError(f"the shares of a schedule must rise from 0 to below 1, got {shares}")

    def mix(step: int, steps: int) -> Mix:
        return next(mix for share, mix in reversed(parts) if step >= share * steps)

    return mix


def alternate(*mixes: Mix) -> Schedule:
    """The mixes in turn, a step each, as LoRA Switch does (arXiv 2402.16843)."""
    if not mixes:
        raise SettingError("there is nothing to alternate; give at least one mix")
    return lambda step, _: mixes[step % len(mixes)]


@contextmanager
def scheduled(
    switcher: AdapterSwitcher, schedule: Schedule, steps: int, *, then: StepCallback | None = None
) -> Iterator[StepCallback]:
    """Hold the model under `schedule` for one picture of `steps` denoising steps.

    Gives what the pipeline has to get as `callback_on_step_end`; it sets the next step's mix and
    then calls `then`. What encodes the prompt sees the first step's mix. The lease is that of
    `AdapterSwitcher.using`: the mix of before comes back at the end, whatever happens. Raises what
    `using` raises, for an unknown adapter before the first step.
    """
    if steps < 1:
        raise SettingError(f"a schedule needs at least one step, got {steps}")
    mixes = [dict(schedule(step, steps)) for step in range(steps)]
    switcher.prefetch(*{name for mix in mixes for name in mix})

    def after_step(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if step + 1 < steps and mixes[step + 1] != mixes[step]:
            switcher.set(mixes[step + 1])
        return tensors if then is None else then(pipe, step, timestep, tensors)

    with switcher.using(mixes[0]):
        yield after_step
