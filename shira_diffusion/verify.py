"""Whether an adapter fits a base: everything that speaks against it, not only the first fault."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from shira_diffusion import summary
from shira_diffusion.adapter import Adapter, Delta
from shira_diffusion.delta import SparseDelta, bounds
from shira_diffusion.errors import nearest
from shira_diffusion.formats.checkpoint import Checkpoint
from shira_diffusion.lowrank import DoraDelta

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
    changed = any(_changes_anything(delta) for delta in adapter.deltas.values())
    found = [
        Finding(
            f"{len(adapter.deltas)} weights, {adapter.nnz:,} entries: all finite, all within the "
            "bounds of their weight"
        )
    ]
    if not changed:
        remedy = "train it, or take another file"
        found.append(Finding("it changes nothing: all values are 0", remedy, wrong=True))
    if not adapter.info.base_fingerprint:
        found.append(
            Finding(
                "it does not say which base it was made for",
                "if you know that, write it into the file with `shira tag FILE --base BASE`",
            )
        )
    return found


def _changes_anything(delta: Delta) -> bool:
    """Whether a change is not all zeros; a LoRA starts with one factor of zeros."""
    if isinstance(delta, SparseDelta):
        return bool(delta.values.any())
    return isinstance(delta, DoraDelta) or bool(delta.up.any() and delta.down.any())


def compare(adapter: Adapter, base: Checkpoint, marks: Mapping[str, str]) -> list[Finding]:
    """What speaks for and against using `adapter` on `base`, whose fingerprints are `marks`."""
    here = [name for name in adapter.deltas if name in base.places]
    fitting = [name for name in here if base.shape(name) == adapter.deltas[name].shape]
    found = [_names(adapter, base, here)]
    if here:
        found.append(_shapes(adapter, base, here, fitting))
    found += _bases(adapter, marks)
    if fitting:
        found.append(_sizes(adapter, base, fitting))
    return found


def _names(adapter: Adapter, base: Checkpoint, here: Collection[str]) -> Finding:
    missing = [name for name in adapter.deltas if name not in here]
    if not missing:
        return Finding("the base has every weight that it changes")
    return Finding(
        f"the base lacks {len(missing)} of the {len(adapter.deltas)} weights that it changes: "
        f"{_some(missing)} ({nearest(missing[0], list(base))})",
        f"it was made for another architecture{_made_for(adapter)}",
        wrong=True,
    )


def _shapes(
    adapter: Adapter, base: Checkpoint, here: Sequence[str], fitting: Collection[str]
) -> Finding:
    wrong = [
        f"{name} is {adapter.deltas[name].shape} here and {base.shape(name)} in the base"
        for name in here
        if name not in fitting
    ]
    if not wrong:
        return Finding("all shapes are those of the base")
    remedy = f"it was made for a base of another size{_made_for(adapter)}"
    return Finding(f"{len(wrong)} shapes differ: {_some(wrong)}", remedy, wrong=True)


def _bases(adapter: Adapter, marks: Mapping[str, str]) -> Iterator[Finding]:
    for component, mark in adapter.info.base_fingerprint.items():
        here = marks.get(component, "")
        if here == mark:
            yield Finding(f"{component}: the very base that it was made for ({mark[:12]})")
            continue
        state = f"this one is {here[:12]}" if here else "this one has no such part"
        yield Finding(
            f"{component}: it was made for the base {mark[:12]}, {state}",
            f"use the base that it was made for{_made_for(adapter)}; if this one is close to it "
            "(a fine-tune), declare the adapter fit with `shira tag FILE --base BASE`",
            wrong=True,
        )


def _sizes(adapter: Adapter, base: Checkpoint, fitting: Sequence[str]) -> Finding:
    def factor(name: str) -> float:
        weight = base.read(name)
        of_weight = _largest(weight)
        change = summary.changes(adapter.deltas[name], weight)
        return _largest(change) / of_weight if of_weight else 0.0

    factors = {name: factor(name) for name in fitting}
    worst = max(factors, key=factors.__getitem__)
    what = f"the largest change is {factors[worst]:.3g} times the largest entry of its weight"
    # NaN, which a DoRA's norm can give, is larger than anything here.
    if not factors[worst] <= _TOO_LARGE:
        remedy = "its training diverged; use an earlier checkpoint"
        return Finding(f"{what} ({worst})", remedy, wrong=True)
    return Finding(what)


def _largest(tensor: Tensor) -> float:
    return max(abs(end) for end in bounds(tensor))


def _made_for(adapter: Adapter) -> str:
    return f" ({adapter.info.base_model})" if adapter.info.base_model else ""


def _some(items: Sequence[str]) -> str:
    rest = len(items) - _SHOWN
    return ", ".join(items[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
