"""`shira convert`: an adapter in another format."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from shira_diffusion import fitting, sparsify
from shira_diffusion.adapter import Adapter
from shira_diffusion.cli import layout, sources
from shira_diffusion.cli.command import Command, Outcome
from shira_diffusion.cli.progress import progress
from shira_diffusion.cli.writers import DENSE, DTYPES, NAMINGS, WRITERS, Said, energy_said
from shira_diffusion.formats.checkpoint import Checkpoint


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("source", type=Path, metavar="ADAPTER", help="a file or folder")
    parser.add_argument("output", type=Path, metavar="OUT", help="the file or folder to write")
    parser.add_argument(
        "--to",
        choices=list(WRITERS),
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
        choices=list(NAMINGS),
        default="kohya",
        help="how --to lora and diff call the layers: kohya for A1111, Forge and ComfyUI "
        "(default), kohya-diffusers the same with diffusers' blocks, or diffusers for "
        "pipe.load_lora_weights",
    )
    parser.add_argument("--dtype", choices=list(DTYPES), default="fp16", help="default: fp16")
    parser.add_argument("--component", metavar="NAME", help="the module that --to peft is for")
    sources.add_base(parser, "needed for a DoRA, and for PEFT files without shapes")
    parser.add_argument("--dry-run", action="store_true", help="only say how large it will be")


def run(options: argparse.Namespace) -> Outcome:
    """Read, thin out if asked to, and write."""
    base = sources.checkpoint(options.base) if options.base else None
    adapter = sources.adapter(options.source, base)
    thinned = Said()
    if options.density is not None:
        adapter, thinned = _thinned(adapter, options, base)
    elif base is not None and options.to in DENSE:
        adapter = fitting.resolved(adapter, base)
    writing = WRITERS[options.to](adapter, options)
    expected = layout.size(writing.expected)
    facts = {
        "file": str(options.output),
        "format": options.to,
        "expected_bytes": writing.expected,
        **thinned.facts,
    }
    if options.dry_run:
        lines = [*thinned.lines, f"{options.output} would take about {expected}"]
        return Outcome("\n".join(lines), facts)
    sys.stderr.write(f"writing {options.output}, about {expected}\n")
    said = writing.write()
    size = layout.bytes_of(options.output)
    lines = [*thinned.lines, *said.lines, f"{options.output}: {layout.size(size)}"]
    return Outcome("\n".join(lines), {**facts, **said.facts, "bytes": size})


def _thinned(
    adapter: Adapter, options: argparse.Namespace, base: Checkpoint | None
) -> tuple[Adapter, Said]:
    with progress("choosing the largest entries") as told:
        thinned, energy = sparsify.sparsify(
            adapter,
            options.density,
            budget=options.budget,
            base=base,
            dtype=DTYPES[options.dtype],
            progress=told,
        )
    return thinned, energy_said(energy, f" in {layout.percent(options.density)} of the entries")


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
