"""`shira tag`: what a file says about itself."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from shira_diffusion import cards, modelspec, verify
from shira_diffusion.cli import sources
from shira_diffusion.cli.command import Command, Outcome
from shira_diffusion.errors import MismatchError, SettingError
from shira_diffusion.relabel import relabel

_TEXTS = ("name", "title", "description", "author", "license", "date")


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("file", type=Path, metavar="FILE", help="an adapter or its folder")
    for key in _TEXTS:
        parser.add_argument(f"--{key}", metavar="TEXT", help=f"its {key}")
    parser.add_argument(
        "--trigger",
        dest="trigger_words",
        action="append",
        metavar="WORD",
        help="a trigger word; give it once for each, they replace those in the file",
    )
    parser.add_argument("--tag", dest="tags", action="append", metavar="TAG", help="likewise a tag")
    parser.add_argument("--thumbnail", type=Path, metavar="IMAGE", help="PNG, JPEG or WebP")
    sources.add_base(parser, "declare the adapter fit for this base")
    parser.add_argument(
        "-o", "--output", type=Path, metavar="FILE", help="write here instead of changing FILE"
    )


def run(options: argparse.Namespace) -> Outcome:
    """Write the file with what was asked for changed."""
    asked = {
        key: tuple(value) if isinstance(value, list) else value
        for key in (*_TEXTS, "trigger_words", "tags")
        if (value := getattr(options, key)) is not None
    }
    if not (asked or options.thumbnail or options.base):
        raise SettingError("there is nothing to change; see `shira tag --help`")
    file = options.file / cards.FILE if options.file.is_dir() else options.file
    extra = modelspec.thumbnail(options.thumbnail) if options.thumbnail else {}
    if options.base:
        asked |= _fit_for(file, options.base)
    target = options.output or file
    info = relabel(file, target, asked, extra)
    changed = ", ".join([*asked, *(["thumbnail"] if extra else [])])
    facts = {"file": str(target), "name": info.name, "changed": [*asked, *extra]}
    return Outcome(f"{target}: wrote {changed}", facts)


def _fit_for(file: Path, source: str) -> dict[str, Any]:
    """Name and fingerprints of a base, if the adapter fits it by names, shapes and sizes."""
    base = sources.checkpoint(source)
    marks = base.fingerprints()
    declared = sources.adapter(file, base).for_base(marks)
    wrong = [one.what for one in verify.compare(declared, base, marks) if one.wrong]
    if wrong:
        raise MismatchError(f"{file}: it does not fit {source}: {'; '.join(wrong)}")
    path = Path(source)
    name = path.resolve().name.removesuffix(".safetensors") if path.exists() else source
    return {"base_model": name, "base_fingerprint": declared.info.base_fingerprint}


COMMAND = Command(
    name="tag",
    summary="change what a file says about itself",
    description="Write title, trigger words, licence, thumbnail and the like into an adapter's\n"
    "file, where other programs find them (ModelSpec). The tensors stay what they are.",
    examples="""  shira tag robot.safetensors --title "A robot" --trigger robot --license CC-BY-4.0
  shira tag robot.safetensors --thumbnail robot.png -o robot-with-picture.safetensors
  shira tag robot.safetensors --base my-finetune.safetensors
""",
    arguments=arguments,
    run=run,
)
