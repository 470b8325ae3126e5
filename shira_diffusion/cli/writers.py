"""The formats that `shira convert` writes: how large each gets, and what it cannot hold."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch

from shira_diffusion.adapter import Adapter
from shira_diffusion.cli import layout
from shira_diffusion.delta import SparseDelta
from shira_diffusion.energy import Energy
from shira_diffusion.errors import SettingError
from shira_diffusion.formats import diff, lora, native, peft
from shira_diffusion.formats.kohya import Naming

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
NAMINGS = {"kohya": Naming.SGM, "kohya-diffusers": Naming.DIFFUSERS, "diffusers": None}
# Below this share of the energy a LoRA no longer looks like what it stands in for.
_POOR = 0.9


@dataclass(frozen=True)
class Said:
    """What there is to say about a file that was written: as text, and as facts for JSON."""

    lines: tuple[str, ...] = ()
    facts: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Writing:
    """A file that can be written: about how many bytes it will have, and the writing itself."""

    expected: int
    write: Callable[[], Said]


def energy_said(energy: Energy, where: str = "") -> Said:
    """How much of a change is kept."""
    line = (
        f"Kept {layout.percent(energy.kept)} of the change's energy{where} "
        f"(relative error {energy.error:.3f})"
    )
    return Said((line,), {"energy_kept": energy.kept, "error": energy.error})


def rounded(adapter: Adapter, word: str) -> Adapter:
    """A sparse adapter with values in another dtype; `SettingError` for one that is too narrow."""
    dtype = DTYPES[word]
    deltas = {}
    for name, one in adapter.entries.items():
        # Infinity is found here, for what a delta says of it is not what happened.
        if not bool(one.values.to(dtype).isfinite().all()):
            raise SettingError(
                f"the changes of {name!r} leave the range of {word}; use smaller strengths, or "
                "--dtype bf16 or fp32"
            )
        deltas[name] = one.to(dtype=dtype)
    return dataclasses.replace(adapter, deltas=deltas)


def to_native(adapter: Adapter, options: argparse.Namespace) -> Writing:
    """Ours: gap-coded indices and values."""
    dtype = DTYPES[options.dtype]
    result = rounded(_sparse(adapter, options), options.dtype)

    def write() -> Said:
        native.save(result, options.output)
        return Said()

    # A gap takes a byte, and sometimes a second one.
    return Writing(round(adapter.nnz * (dtype.itemsize + 1.08)), write)


def to_peft(adapter: Adapter, options: argparse.Namespace) -> Writing:
    """PEFT's SHiRA: one r for all layers, twelve bytes an entry."""
    adapter = _sparse(adapter, options)

    def write() -> Said:
        padding = peft.save(adapter, options.output, component=options.component)
        line = (
            f"PEFT's r is {padding.r}; {padding.added:,} entries of value 0 "
            f"({layout.percent(padding.share)}) fill every layer up to it"
        )
        return Said((line,), {"r": padding.r, "added_entries": padding.added})

    # The most that one layer needs holds for all of them.
    sides = {name: sum(one.shape) for name, one in adapter.deltas.items() if sum(one.shape)}
    r = max((-(-adapter.deltas[name].nnz // side) for name, side in sides.items()), default=0)
    return Writing(12 * r * sum(sides.values()), write)


def to_lora(adapter: Adapter, options: argparse.Namespace) -> Writing:
    """The nearest LoRA of a rank."""
    if options.rank is None or options.rank < 1:
        raise SettingError("--to lora needs a --rank, such as 32")
    dtype = DTYPES[options.dtype]

    def write() -> Said:
        energy = lora.save(
            adapter,
            options.output,
            options.rank,
            naming=NAMINGS[options.names],
            dtype=dtype,
        )
        said = energy_said(energy)
        warning = (
            "warning: that is poor, pictures will differ; use a higher --rank, or what is exact "
            "(native with the ComfyUI node, diff, or `shira bake`)"
        )
        return Said((*said.lines, *([warning] if energy.kept < _POOR else [])), said.facts)

    rows_and_columns = sum(
        one.shape[0] + one.numel // one.shape[0] for one in adapter.deltas.values() if one.numel
    )
    return Writing(rows_and_columns * options.rank * dtype.itemsize, write)


def to_diff(adapter: Adapter, options: argparse.Namespace) -> Writing:
    """Every entry of every touched weight."""
    dtype = DTYPES[options.dtype]
    naming = NAMINGS[options.names]
    if naming is None:
        raise SettingError("diffusers reads no dense changes; use --names kohya, or `shira bake`")

    def write() -> Said:
        diff.save(adapter, options.output, naming=naming, dtype=dtype)
        return Said()

    return Writing(diff.size(adapter, dtype=dtype), write)


def _sparse(adapter: Adapter, options: argparse.Namespace) -> Adapter:
    if all(isinstance(one, SparseDelta) for one in adapter.deltas.values()):
        return adapter
    raise SettingError(
        f"{options.source} is a LoRA, which changes every entry; say how many to keep, such as "
        "--density 0.01"
    )


WRITERS: Mapping[str, Callable[[Adapter, argparse.Namespace], Writing]] = {
    "native": to_native,
    "peft": to_peft,
    "lora": to_lora,
    "diff": to_diff,
}
DENSE = frozenset({"lora", "diff"})
"""Those that hold a change of every entry, however many it has."""
