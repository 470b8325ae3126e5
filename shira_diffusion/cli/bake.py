"""`shira bake`: a base with adapters in it, as a whole checkpoint."""

from __future__ import annotations

import argparse
from pathlib import Path

from shira_diffusion import bake
from shira_diffusion.cli import layout, sources
from shira_diffusion.cli.command import Command, Outcome
from shira_diffusion.cli.progress import progress


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("base", metavar="BASE", help="a diffusers folder, a checkpoint or a hub id")
    parser.add_argument(
        "mix",
        type=sources.weighted,
        nargs="+",
        metavar="FILE[=STRENGTH]",
        help="adapters of any format and their strengths, 1 if not given",
    )
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="OUT", help="of the base's kind"
    )


def run(options: argparse.Namespace) -> Outcome:
    """Write the checkpoint, weight by weight."""
    base = sources.checkpoint(options.base)
    mix = [(sources.adapter(one.path, base), one.strength) for one in options.mix]
    with progress("baking") as told:
        bake.bake(base.path, mix, options.output, progress=told)
    size = layout.bytes_of(options.output)
    changed = len({name for adapter, _ in mix for name in adapter.deltas})
    facts = {
        "output": str(options.output),
        "bytes": size,
        "weights_changed": changed,
        "mix": {str(one.path): one.strength for one in options.mix},
    }
    text = f"{options.output}: {layout.size(size)}, {changed} weights changed"
    return Outcome(text, facts)


COMMAND = Command(
    name="bake",
    summary="write a whole checkpoint with adapters in it",
    description="Write a copy of a base with a mix of adapters in its weights, of the base's kind\n"
    "(a folder or one file) and dtype. It needs no adapter any more, and every program\n"
    "reads it.",
    examples="""  shira bake models/emoji-xl adapters/robot -o models/robot-xl
  shira bake models/emoji-xl adapters/robot=0.8 adapters/high-contrast -o models/both
  shira bake sdxl.safetensors robot.safetensors=0.8 lora.safetensors=0.5 -o mixed.safetensors
""",
    arguments=arguments,
    run=run,
)
