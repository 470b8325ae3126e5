"""Whether an adapter fits a base: everything that speaks against it, not only the first fault."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from shira_diffusion.adapter import Adapter
from shira_diffusion.components import Weights
from shira_diffusion.delta import bounds
from shira_diffusion.errors import MismatchError, nearest
from shira_diffusion.fingerprint import fingerprint

# Training moves a weight by a part of its size. A change of ten times the largest weight is not
# something that was learned.
_TOO_LARGE = 10.0
_SHOWN = 3


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: `wrong` or not, or a note that hurts nothing.

    `what` says what was found, `remedy` what to do about it; "" where nothing needs doing.
    """

    what: str
    remedy: str = ""
    wrong: bool = False


def examine(adapter: Adapter) -> list[Finding]:
    """What can be said without a base. Shapes, bounds, order and finiteness hold in any adapter."""
    changed = sum(bool(delta.values.count_nonzero()) for delta in adapter.deltas.values())
    found = [
        Finding(
            f"{len(adapter.deltas)} weights, {adapter.nnz:,} entries: all finite, all within the "
            "bounds of their weight"
        )
    ]
    if not changed:
        found.append(
            Finding("it changes nothing: all values are 0", "train it, or take another file", True)
        )
    if not adapter.info.base_fingerprint:
        found.append(
            Finding(
                "it does not say which base it was made for",
                "if you know that, write it into the file with `shira tag FILE --base BASE`",
            )
        )
    return found


def compare(adapter: Adapter, target: object) -> list[Finding]:
    """What speaks for and against using `adapter` on `target`, a pipeline or its modules.

    Raises `MismatchError` for a target without modules.
    """
    weights = Weights(target)
    found, fitting = _names(adapter, weights)
    shapes, fitting = _shapes(adapter, weights, fitting)
    found += shapes
    found += _bases(adapter, weights)
    if fitting:
        found += _sizes(adapter, weights, fitting)
    return found


def _names(adapter: Adapter, weights: Weights) -> tuple[list[Finding], dict[str, str]]:
    """Findings, and the slot of every weight that the model has, by name."""
    slots: dict[str, str] = {}
    missing: list[str] = []
    for name in adapter.deltas:
        try:
            slots[name] = weights.slot(name)
        except MismatchError:
            missing.append(name)
    if not missing:
        return [Finding("the base has every weight that it changes")], slots
    known = [f"{part}.{name}" if part else name for part, name in _parameters(weights)]
    guess = nearest(missing[0], known)
    return [
        Finding(
            f"the base lacks {len(missing)} of the {len(adapter.deltas)} weights that it changes: "
            f"{_some(missing)} ({guess})",
            f"it was made for another architecture{_made_for(adapter)}",
            wrong=True,
        )
    ], slots


def _shapes(
    adapter: Adapter, weights: Weights, slots: Mapping[str, str]
) -> tuple[list[Finding], dict[str, str]]:
    fitting: dict[str, str] = {}
    wrong = []
    for name, slot in slots.items():
        shape = tuple(weights.live(slot).shape)
        if shape == adapter.deltas[name].shape:
            fitting[name] = slot
        else:
            wrong.append(f"{name} is {adapter.deltas[name].shape} here and {shape} in the base")
    if wrong:
        remedy = f"it was made for a base of another size{_made_for(adapter)}"
        return [Finding(f"{len(wrong)} shapes differ: {_some(wrong)}", remedy, True)], fitting
    return ([Finding("all shapes are those of the base")] if fitting else []), fitting


def _bases(adapter: Adapter, weights: Weights) -> Iterator[Finding]:
    for component, mark in adapter.info.base_fingerprint.items():
        module = weights.modules.get(component)
        here = fingerprint(module) if module is not None else ""
        if here == mark:
            yield Finding(f"{component}: the very base that it was made for ({mark[:12]})")
            continue
        state = f"this one has {here[:12]}" if here else "this one has no such part"
        yield Finding(
            f"{component}: it was made for the base {mark[:12]}, {state}",
            f"use the base that it was made for{_made_for(adapter)}; if this one is close to it "
            "(a fine-tune), declare the adapter fit with `shira tag FILE --base BASE`",
            wrong=True,
        )


def _sizes(adapter: Adapter, weights: Weights, slots: Mapping[str, str]) -> Iterator[Finding]:
    def factor(name: str) -> float:
        of_weight = _largest(bounds(weights.live(slots[name])))
        return _largest(bounds(adapter.deltas[name].values)) / of_weight if of_weight else 0.0

    factors = {name: factor(name) for name in slots}
    worst = max(factors, key=factors.__getitem__)
    what = f"the largest change is {factors[worst]:.3g} times the largest entry of its weight"
    if factors[worst] > _TOO_LARGE:
        yield Finding(f"{what} ({worst})", "its training diverged; use an earlier checkpoint", True)
    else:
        yield Finding(what)


def _largest(ends: tuple[float, float]) -> float:
    return max(abs(end) for end in ends)


def _parameters(weights: Weights) -> Iterator[tuple[str, str]]:
    for component, module in weights.modules.items():
        for name, _ in module.named_parameters():
            yield component, name


def _made_for(adapter: Adapter) -> str:
    return f" ({adapter.info.base_model})" if adapter.info.base_model else ""


def _some(items: list[str]) -> str:
    rest = len(items) - _SHOWN
    return ", ".join(items[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
