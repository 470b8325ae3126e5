"""A dense change as a sparse one: the largest entries of a LoRA, or of a fine-tuned checkpoint."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from shira_diffusion import budgets, masks
from shira_diffusion.adapter import Adapter, AdapterInfo
from shira_diffusion.delta import SparseDelta
from shira_diffusion.energy import Energy
from shira_diffusion.errors import MismatchError, SettingError
from shira_diffusion.fitting import require_made_for
from shira_diffusion.formats.checkpoint import Checkpoint
from shira_diffusion.progress import Progress
from shira_diffusion.targets import chosen_of_all

BUDGETS = ("global", "layer")


def sparsify(
    adapter: Adapter,
    density: float,
    *,
    budget: str = "global",
    base: Checkpoint | None = None,
    dtype: torch.dtype = torch.float16,
    progress: Progress | None = None,
) -> tuple[Adapter, Energy]:
    """The largest entries of `adapter`'s change, and how much of its energy they keep.

    `density` in (0, 1] counts the entries of the weights that it touches: the largest of all
    weights together with the budget "global", of each with "layer". `base` is needed for a DoRA,
    whose change depends on it. One weight is dense in memory at a time; it is computed up to four
    times. Values are rounded to `dtype`, which the energy accounts for. Raises `MismatchError` for
    an adapter that was not made for `base`.
    """

    def change(name: str) -> Tensor:
        delta = adapter.deltas[name]
        if isinstance(delta, SparseDelta):
            return delta.to_dense().float()
        return delta.change(None if base is None else base.read(name))

    if base is None:
        for delta in adapter.deltas.values():
            delta.require_no_base()
    else:
        require_made_for(adapter, base, base.fingerprints())
    sizes = {name: delta.numel for name, delta in adapter.deltas.items()}
    deltas, energy = _largest(sizes, change, density, budget, dtype, progress)
    training = {
        **adapter.info.training,
        "sparsified": f"{density:g}, {budget}",
        "of": adapter.info.method,
    }
    info = dataclasses.replace(
        adapter.info, method="shira", mask="largest changes", training=training
    )
    return Adapter(deltas, info), energy


def extract(
    base: str | Path,
    tuned: str | Path,
    density: float,
    *,
    name: str,
    targets: Sequence[str] = (),
    budget: str = "global",
    dtype: torch.dtype = torch.float16,
    progress: Progress | None = None,
) -> tuple[Adapter, Energy]:
    """The largest differences of two checkpoints as an adapter, and the energy kept per layer.

    `density` counts the entries of the weights in the groups `targets` (see `targets.TARGETS`), or
    of every matrix and convolution without them; weights that do not differ are passed over. What
    lies in other weights (biases, norms) is lost, and the energy says so. Raises
    `MismatchError` for checkpoints of different architectures.
    """
    before, after = Checkpoint(base), Checkpoint(tuned)
    common = _common(before, after)

    def change(weight: str) -> Tensor:
        return after.read(weight).float() - before.read(weight).float()

    wanted = (
        chosen_of_all(common, targets)
        if targets
        else {weight for weight, shape in common.items() if len(shape) >= 2}
    )
    outside = {weight: _squared(change(weight)) for weight in sorted(set(common) - wanted)}
    sizes = {
        weight: change(weight).numel() for weight in sorted(wanted) if bool(change(weight).any())
    }
    deltas, energy = _largest(sizes, change, density, budget, dtype, progress)
    info = AdapterInfo(
        name=name,
        base_model=before.path.name.removesuffix(".safetensors"),
        base_fingerprint=_touched(before.fingerprints(), deltas),
        mask="largest changes",
        training={"extracted from": after.path.name, "density": f"{density:g}", "budget": budget},
    )
    left = {weight: one for weight, one in outside.items() if one}
    return Adapter(deltas, info), Energy({**energy.whole, **left}, {**energy.lost, **left})


def _largest(
    sizes: Mapping[str, int],
    change: Callable[[str], Tensor],
    density: float,
    budget: str,
    dtype: torch.dtype,
    progress: Progress | None,
) -> tuple[dict[str, SparseDelta], Energy]:
    """The largest entries of the dense changes of weights of `sizes`, by one budget or many."""
    if budget not in BUDGETS:
        raise SettingError(f"there is no budget {budget!r}; there are: {', '.join(BUDGETS)}")
    counts = {name: masks.count(size, density) for name, size in sizes.items()}
    # A global budget looks at every weight three times before entries are taken.
    total, done = len(sizes) * (4 if budget == "global" else 1), 0

    def seen(name: str) -> Tensor:
        nonlocal done
        dense = change(name)
        done += 1
        if progress is not None:
            progress(done, total)
        return dense

    if budget == "global" and sizes:
        everything = masks.count(sum(sizes.values()), density)
        counts = budgets.by_score(list(sizes), lambda name: seen(name).abs(), everything)
    deltas, whole, lost = {}, {}, {}
    for name in sizes:
        dense = seen(name)
        if not bool(dense.isfinite().all()):
            raise MismatchError(
                f"the change of {name!r} holds NaN or infinity; its file is damaged"
            )
        whole[name] = _squared(dense)
        if counts[name]:
            indices = masks.wm(dense, counts[name])
            values = dense.flatten()[indices.long()].to(dtype)
            deltas[name] = SparseDelta(indices, values, tuple(dense.shape))
            dense.view(-1)[indices.long()] -= values.float()
        lost[name] = _squared(dense)
    return deltas, Energy(whole, lost)


def _common(before: Checkpoint, after: Checkpoint) -> dict[str, tuple[int, ...]]:
    """The shapes of the weights that both have."""
    shapes = {name: shape for name, shape in before.shapes.items() if name in after.places}
    if not shapes:
        raise MismatchError(f"{before.path} and {after.path} have no weight in common")
    for name, shape in shapes.items():
        if after.shape(name) != shape:
            raise MismatchError(
                f"{name!r} is {shape} in {before.path} but {after.shape(name)} in {after.path}; "
                "they are models of different architectures"
            )
    return shapes


def _touched(marks: Mapping[str, str], deltas: Mapping[str, SparseDelta]) -> dict[str, str]:
    components = {name.partition(".")[0] for name in deltas}
    return {component: mark for component, mark in marks.items() if component in components}


def _squared(dense: Tensor) -> float:
    return float(dense.double().square().sum())
