"""`shira verify`: whether adapter files are whole, and fit a base."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shira_diffusion import verify
from shira_diffusion.adapter import Adapter
from shira_diffusion.cli import base
from shira_diffusion.cli.command import FOUND_WRONG, Command, Outcome
from shira_diffusion.errors import FormatError
from shira_diffusion.verify import Finding


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE", help="adapters to check")
    base.add(parser, required=False, purpose="the base that they must fit")


def run(options: argparse.Namespace) -> Outcome:
    """Check every file, whatever is wrong with the others."""
    target = base.load(options.base) if options.base else None
    found = {str(file): check(file, target) for file in options.files}
    wrong = sum(any(one.wrong for one in findings) for findings in found.values())
    text = "\n\n".join(_report(file, findings) for file, findings in found.items())
    facts = {
        file: {
            "ok": not any(one.wrong for one in findings),
            "findings": [dataclasses.asdict(one) for one in findings],
        }
        for file, findings in found.items()
    }
    return Outcome(text, facts, FOUND_WRONG if wrong else 0)


def check(file: Path, target: Any) -> list[Finding]:
    """Everything that is found about one file, on `target` where there is one."""
    try:
        adapter = Adapter.load(file)
    except FormatError as error:
        what = str(error).removeprefix(f"{file}: ")
        return [Finding(what, wrong=True)]
    findings = verify.examine(adapter)
    return findings if target is None else [*findings, *verify.compare(adapter, target)]


def _report(file: str, findings: Sequence[Finding]) -> str:
    wrong = sum(one.wrong for one in findings)
    lines = [f"{file}: {f'{wrong} wrong' if wrong else 'fine'}"]
    for one in findings:
        mark = "WRONG" if one.wrong else "note " if one.remedy else "ok   "
        lines.append(f"  {mark}  {one.what}")
        if one.remedy:
            lines.append(f"         -> {one.remedy}")
    return "\n".join(lines)


COMMAND = Command(
    name="verify",
    summary="check that adapters are whole and fit a base",
    description="Read adapter files to the last byte (checksum, sizes, order, bounds, finite\n"
    "values) and, with --base, compare them with it: names, shapes, fingerprint, size of changes.",
    examples="""  shira verify adapters/robot/adapter.safetensors
  shira verify robot.safetensors --base models/emoji-xl
  shira verify adapters/*/adapter.safetensors --base stabilityai/stable-diffusion-xl-base-1.0
""",
    arguments=arguments,
    run=run,
)
