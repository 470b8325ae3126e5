"""`shira convert`: an adapter in another format."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from shira_diffusion import sparsify
from shira_diffusion.adapter import Adapter
from shira_diffusion.cli import layout, sources
from shira_diffusion.cli.command import Command, Outcome
from shira_diffusion.cli.progress import progress
from shira_diffusion.delta import SparseDelta
from shira_diffusion.energy import Energy
from shira_diffusion.errors import SettingError
from shira_diffusion.formats import diff, lora, native, peft
from shira_diffusion.formats.checkpoint import Checkpoint
from shira_diffusion.formats.kohya import Naming

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
_NAMINGS = {"diffusers": None, "kohya": Naming.SGM, "kohya-diffusers": Naming.DIFFUSERS}
# Below this share of the energy a LoRA no longer looks like what it stands in for.
_POOR = 0.9


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("source", type=Path, metavar="ADAPTER", help="a file or folder")
    parser.add_argument("output", type=Path, metavar="OUT", help="the file or folder to write")
    parser.add_argument(
        "--to",
        choices=list(_WRITERS),
        default="native",
        help="native: ours, small and exact (default); peft: a folder for PEFT's SHiRA; "
        "lora: by SVD, for every program; diff: dense, for ComfyUI and A1111, heavy",
    )
    parser.add_argument(
        "--density",
        type=float,
        metavar="SHARE",
        help="keep this share of all entries, the largest, such as 0.01; a LoRA needs it to "
        "become native or peft",
    )
    parser.add_argument(
        "--budget",
        choices=sparsify.BUDGETS,
        default="global",
        help="the density holds for all weights together (default), or for each",
    )
    parser.add_argument("--rank", type=int, metavar="N", help="the rank of --to lora")
    parser.add_argument(
        "--names",
        choices=list(_NAMINGS),
        default="kohya",
        help="how --to lora and diff call the layers: kohya for A1111, Forge and ComfyUI "
        "(default), or diffusers for pipe.load_lora_weights",
    )
    parser.add_argument("--dtype", choices=list(DTYPES), default="fp16", help="default: fp16")
    parser.add_argument("--component", metavar="NAME", help="the module that --to peft is for")
    sources.add_base(parser, "needed for a DoRA, and for PEFT files without shapes")
    parser.add_argument("--dry-run", action="store_true", help="only say how large it will be")


def run(options: argparse.Namespace) -> Outcome:
    """Read, thin out if asked to, and write."""
    base = sources.checkpoint(options.base) if options.base else None
    adapter = sources.adapter(options.source, base)
    said: list[str] = []
    facts: dict[str, object] = {"file": str(options.output), "format": options.to}
    if options.density is not None:
        adapter, energy = _thinned(adapter, options, base)
        said.append(
            f"Kept {layout.percent(energy.kept)} of the change's energy in "
            f"{layout.percent(options.density)} of the entries (relative error {energy.error:.3f})"
        )
        facts |= {"energy_kept": energy.kept, "error": energy.error}
    about, write = _WRITERS[options.to](adapter, options)
    facts |= about
    expected = layout.size(float(str(about["expected_bytes"])))
    if options.dry_run:
        return Outcome("\n".join([*said, f"{options.output} would take {expected}"]), facts)
    sys.stderr.write(f"writing {options.output}, about {expected}\n")
    more, told = write()
    facts |= told
    facts["bytes"] = size = layout.bytes_of(options.output)
    return Outcome("\n".join([*said, *more, f"{options.output}: {layout.size(size)}"]), facts)


Write = Callable[[], tuple[list[str], dict[str, object]]]
"""Writes the file; returns what to say about it, as text and as facts."""
Writer = Callable[[Adapter, argparse.Namespace], tuple[dict[str, object], Write]]
"""Facts that are known before anything is written, such as its size, and the writing."""


def _thinned(
    adapter: Adapter, options: argparse.Namespace, base: Checkpoint | None
) -> tuple[Adapter, Energy]:
    with progress("choosing the largest entries") as told:
        return sparsify.sparsify(
            adapter,
            options.density,
            budget=options.budget,
            base=base,
            dtype=DTYPES[options.dtype],
            progress=told,
        )


def _to_native(adapter: Adapter, options: argparse.Namespace) -> tuple[dict[str, object], Write]:
    adapter = _sparse(adapter, options)
    deltas = {name: one.to(dtype=DTYPES[options.dtype]) for name, one in adapter.deltas.items()}
    width = DTYPES[options.dtype].itemsize

    def write() -> tuple[list[str], dict[str, object]]:
        native.save(dataclasses.replace(adapter, deltas=deltas), options.output)
        return [], {}

    # A gap takes a byte, and sometimes a second one.
    return {"expected_bytes": round(adapter.nnz * (width + 1.08))}, write


def _to_peft(adapter: Adapter, options: argparse.Namespace) -> tuple[dict[str, object], Write]:
    adapter = _sparse(adapter, options)

    def write() -> tuple[list[str], dict[str, object]]:
        padding = peft.save(adapter, options.output, component=options.component)
        told = (
            f"PEFT's r is {padding.r}; {padding.added:,} entries of value 0 "
            f"({layout.percent(padding.share)}) fill every layer up to it"
        )
        return [told], {"r": padding.r, "added_entries": padding.added}

    # The most that one layer needs holds for all of them, at twelve bytes an entry.
    sides = {name: sum(one.shape) for name, one in adapter.deltas.items() if one.shape}
    r = max((-(-adapter.deltas[name].nnz // sides[name]) for name in sides), default=0)
    return {"expected_bytes": 12 * r * sum(sides.values())}, write


def _to_lora(adapter: Adapter, options: argparse.Namespace) -> tuple[dict[str, object], Write]:
    if options.rank is None:
        raise SettingError("--to lora needs a --rank, such as 32")
    method = adapter.info.method
    training = {**adapter.info.training, "converted": f"rank {options.rank} of {method}"}
    info = dataclasses.replace(adapter.info, method="lora", mask="", training=training)
    sides = sum(one.shape[0] + one.numel // one.shape[0] for one in adapter.deltas.values())

    def write() -> tuple[list[str], dict[str, object]]:
        energy = lora.save(
            dataclasses.replace(adapter, info=info),
            options.output,
            options.rank,
            naming=_NAMINGS[options.names],
            dtype=DTYPES[options.dtype],
        )
        return _told(energy), {"energy_kept": energy.kept, "error": energy.error}

    size = sides * options.rank * DTYPES[options.dtype].itemsize
    return {"expected_bytes": size, "rank": options.rank}, write


def _to_diff(adapter: Adapter, options: argparse.Namespace) -> tuple[dict[str, object], Write]:
    dtype = DTYPES[options.dtype]

    def write() -> tuple[list[str], dict[str, object]]:
        diff.save(
            adapter, options.output, naming=_NAMINGS[options.names] or Naming.SGM, dtype=dtype
        )
        return [], {}

    return {"expected_bytes": diff.size(adapter, dtype=dtype)}, write


def _told(energy: Energy) -> list[str]:
    said = [f"Kept {layout.percent(energy.kept)} of the change's energy"]
    if energy.kept < _POOR:
        said.append(
            "warning: that is poor, pictures will differ; use a higher --rank, or a format that "
            "is exact (native with the ComfyUI node, diff, or `shira bake`)"
        )
    return said


def _sparse(adapter: Adapter, options: argparse.Namespace) -> Adapter:
    if all(isinstance(one, SparseDelta) for one in adapter.deltas.values()):
        return adapter
    raise SettingError(
        f"{options.source} is a LoRA, which changes every entry; say how many to keep, such as "
        "--density 0.01"
    )


_WRITERS: Mapping[str, Writer] = {
    "native": _to_native,
    "peft": _to_peft,
    "lora": _to_lora,
    "diff": _to_diff,
}

COMMAND = Command(
    name="convert",
    summary="write an adapter in another format",
    description="Read an adapter of any format (native, PEFT's SHiRA, LoRA, DoRA, dense diff) and\n"
    "write it in another one. What the new format cannot hold is said.",
    examples="""  shira convert peft-folder robot.safetensors
  shira convert lora.safetensors sparse.safetensors --density 0.01
  shira convert robot.safetensors robot-lora.safetensors --to lora --rank 32
  shira convert robot.safetensors robot-diff.safetensors --to diff --dry-run
  shira convert robot.safetensors peft-folder --to peft --component unet
""",
    arguments=arguments,
    run=run,
)
