"""`shira extract`: a sparse adapter out of a base and a fine-tune of it."""

from __future__ import annotations

import argparse
from pathlib import Path

from shira_diffusion import sparsify
from shira_diffusion.cli import layout, sources
from shira_diffusion.cli.command import Command, Outcome
from shira_diffusion.cli.progress import progress
from shira_diffusion.cli.writers import DTYPES, energy_said
from shira_diffusion.energy import Energy
from shira_diffusion.errors import MismatchError
from shira_diffusion.summary import block
from shira_diffusion.targets import TARGETS


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("base", metavar="BASE", help="a diffusers folder, a checkpoint or a hub id")
    parser.add_argument("tuned", metavar="TUNED", help="what was trained from it, in any such form")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="a file")
    parser.add_argument(
        "--density", type=float, default=0.01, metavar="SHARE", help="of the entries (default 0.01)"
    )
    parser.add_argument(
        "--targets",
        nargs="+",
        choices=list(TARGETS),
        default=[],
        help="only weights of these groups (default: every matrix and convolution)",
    )
    parser.add_argument(
        "--budget",
        choices=sparsify.BUDGETS,
        default="global",
        help="the density holds for all weights together (default), or for each",
    )
    parser.add_argument("--name", metavar="NAME", help="the adapter's (default: the file's)")
    parser.add_argument("--dtype", choices=list(DTYPES), default="fp16", help="default: fp16")
    parser.add_argument("--layers", action="store_true", help="a row for every weight")


def run(options: argparse.Namespace) -> Outcome:
    """Compare the checkpoints, and write the native file."""
    base, tuned = (sources.checkpoint(one).path for one in (options.base, options.tuned))
    with progress("comparing weights") as told:
        adapter, energy = sparsify.extract(
            base,
            tuned,
            options.density,
            name=options.name or options.output.stem,
            targets=options.targets,
            budget=options.budget,
            dtype=DTYPES[options.dtype],
            progress=told,
        )
    if not adapter.nnz:
        where = f" in {' and '.join(options.targets)}" if options.targets else ""
        raise MismatchError(
            f"{options.base} and {options.tuned} do not differ{where}; there is nothing to extract"
        )
    adapter.save(options.output)
    size, said = options.output.stat().st_size, energy_said(energy)
    text = (
        f"{options.output}: {layout.size(size)}, {adapter.nnz:,} entries in "
        f"{len(adapter.deltas)} weights\n"
        f"{said.lines[0]}\n\n{_rows(energy, whole=options.layers)}"
    )
    facts = {
        "file": str(options.output),
        "bytes": size,
        "entries": adapter.nnz,
        **said.facts,
        "layers": dict(energy.shares),
    }
    return Outcome(text, facts)


def _rows(energy: Energy, *, whole: bool) -> str:
    """The energy of each weight or block, where it lies and how much of it is kept."""
    groups: dict[str, list[str]] = {}
    for name in energy.whole:
        groups.setdefault(name if whole else block(name), []).append(name)
    total = sum(energy.whole.values())
    rows = []
    for group, names in groups.items():
        part = Energy({n: energy.whole[n] for n in names}, {n: energy.lost[n] for n in names})
        share = sum(part.whole.values()) / total if total else 0.0
        rows.append((group, layout.percent(share), layout.percent(part.kept)))
    return layout.table(("", "of all energy", "kept"), rows)


COMMAND = Command(
    name="extract",
    summary="make a sparse adapter of a fine-tuned model",
    description="Compare a base with a fine-tune of it, keep the largest differences as an\n"
    "adapter, and say how much of the difference they are. Biases and norms are not kept.",
    examples="""  shira extract base.safetensors finetune.safetensors -o style.safetensors
  shira extract models/base models/tuned -o style.safetensors --density 0.02 --layers
  shira extract base.safetensors finetune.safetensors -o style.safetensors --targets attention
""",
    arguments=arguments,
    run=run,
)
