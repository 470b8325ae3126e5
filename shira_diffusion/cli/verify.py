"""`shira verify`: whether adapter files are whole, and fit a base."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from shira_diffusion import formats, verify
from shira_diffusion.cli import sources
from shira_diffusion.cli.command import FOUND_WRONG, Command, Outcome
from shira_diffusion.errors import FormatError
from shira_diffusion.formats.checkpoint import Checkpoint
from shira_diffusion.verify import Finding


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE", help="adapters to check")
    sources.add_base(parser, "the base that they must fit")


def run(options: argparse.Namespace) -> Outcome:
    """Check every file, whatever is wrong with the others."""
    base = sources.checkpoint(options.base) if options.base else None
    marks = base.fingerprints() if base else {}
    found = {str(file): check(file, base, marks) for file in options.files}
    wrong = {file for file, findings in found.items() if any(one.wrong for one in findings)}
    text = "\n\n".join(_report(file, findings) for file, findings in found.items())
    facts = {
        file: {
            "ok": file not in wrong,
            "findings": [dataclasses.asdict(one) for one in findings],
        }
        for file, findings in found.items()
    }
    return Outcome(text, facts, FOUND_WRONG if wrong else 0)


def check(file: Path, base: Checkpoint | None, marks: Mapping[str, str]) -> list[Finding]:
    """Everything that is found about one file, on `base` with its fingerprints if it is given."""
    try:
        adapter = sources.adapter(file, base)
        formats.require_sha256(file)
    except FormatError as error:
        what = str(error).removeprefix(f"{file}: ")
        return [Finding(what, wrong=True)]
    findings = verify.examine(adapter)
    return findings if base is None else [*findings, *verify.compare(adapter, base, marks)]


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
    description="Read adapter files to the last byte (checksums, sizes, order, bounds,\n"
    "finite values) and, with --base, compare them with it: names, shapes, fingerprint,\n"
    "size of the changes.",
    examples="""  shira verify adapters/robot/adapter.safetensors
  shira verify robot.safetensors --base models/emoji-xl
  shira verify adapters/*/adapter.safetensors --base stabilityai/stable-diffusion-xl-base-1.0
""",
    arguments=arguments,
    run=run,
)
