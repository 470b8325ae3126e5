"""`shira fuse`: one adapter out of several."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from shira_diffusion import fuse
from shira_diffusion.adapter import Adapter
from shira_diffusion.cli import layout, sources
from shira_diffusion.cli.command import Command, Outcome
from shira_diffusion.cli.writers import DTYPES, rounded
from shira_diffusion.fuse.parts import Parts

# From here on entries are hardly smaller than dense weights.
_DENSE = 0.5

Method = Callable[[Parts, argparse.Namespace], Adapter]


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "parts",
        type=sources.weighted,
        nargs="+",
        metavar="FILE[=STRENGTH]",
        help="adapters and the strengths at which they are taken, 1 if not given",
    )
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="a file")
    parser.add_argument(
        "--method",
        choices=list(_METHODS),
        default="sum",
        help="what happens where several change one entry. sum: what the mix itself does "
        "(default); mean: of those that change it; strongest: the largest alone; ties: the mean "
        "of those that agree in sign (see --keep); dare: each is thinned at random first (see "
        "--drop)",
    )
    parser.add_argument(
        "--keep", type=float, default=0.2, metavar="SHARE", help="what ties keeps (default 0.2)"
    )
    parser.add_argument(
        "--drop", type=float, default=0.5, metavar="SHARE", help="what dare drops (default 0.5)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of dare (default 0)")
    sources.add_base(parser, "needed for a DoRA, and for PEFT files without shapes")
    parser.add_argument("--name", metavar="NAME", help="the new adapter's (default: the file's)")
    parser.add_argument("--dtype", choices=list(DTYPES), default="fp16", help="default: fp16")


def run(options: argparse.Namespace) -> Outcome:
    """Fuse, and write the native file."""
    base = sources.checkpoint(options.base) if options.base else None
    parts = [(sources.resolved(one.path, base), one.strength) for one in options.parts]
    result = rounded(_METHODS[options.method](parts, options), options.dtype)
    result.save(options.output)
    size = options.output.stat().st_size
    facts = {
        "file": str(options.output),
        "bytes": size,
        "name": result.info.name,
        "method": options.method,
        "parts": {str(one.path): one.strength for one in options.parts},
        "entries": result.nnz,
        "density": result.density,
        "trigger_words": list(result.info.trigger_words),
    }
    words = ", ".join(result.info.trigger_words) or "none"
    text = (
        f"{options.output}: {layout.size(size)}, {result.nnz:,} entries "
        f"({layout.percent(result.density)}) in {len(result.deltas)} weights\n"
        f"trigger words: {words}"
    )
    if result.density > _DENSE:
        text += (
            "\nnote: that is no longer sparse; `shira convert --density` thins it out, "
            "`shira bake` writes a checkpoint instead"
        )
    return Outcome(text, facts)


def _name(options: argparse.Namespace) -> str:
    return options.name or options.output.stem


def _dare(parts: Parts, options: argparse.Namespace) -> Adapter:
    generator = torch.Generator().manual_seed(options.seed)
    thinned = [(fuse.dare(adapter, options.drop, generator), one) for adapter, one in parts]
    return fuse.weighted_sum(thinned, name=_name(options))


_METHODS: Mapping[str, Method] = {
    "sum": lambda parts, options: fuse.weighted_sum(parts, name=_name(options)),
    "mean": lambda parts, options: fuse.mean(parts, name=_name(options)),
    "strongest": lambda parts, options: fuse.strongest(parts, name=_name(options)),
    "ties": lambda parts, options: fuse.ties(parts, keep=options.keep, name=_name(options)),
    "dare": _dare,
}

COMMAND = Command(
    name="fuse",
    summary="make one adapter out of several",
    description="Make one native file out of several adapters of one base.",
    examples="""  shira fuse robot.safetensors ink.safetensors -o robot-in-ink.safetensors
  shira fuse robot.safetensors=0.8 ink.safetensors=1.1 -o both.safetensors --name both
  shira fuse a.safetensors b.safetensors -o merged.safetensors --method ties --keep 0.3
""",
    arguments=arguments,
    run=run,
)
