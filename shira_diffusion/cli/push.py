"""`shira push`: an adapter to the Hugging Face hub."""

from __future__ import annotations

import argparse
from pathlib import Path

from shira_diffusion import hub
from shira_diffusion.cli import layout
from shira_diffusion.cli.command import Command, Outcome


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "path", type=Path, metavar="ADAPTER", help="a file, or a folder as the trainer leaves it"
    )
    parser.add_argument("repo_id", metavar="USER/NAME", help="the repository on the hub")
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    parser.add_argument(
        "--dry-run", action="store_true", help="show the card and what would go up; send nothing"
    )


def run(options: argparse.Namespace) -> Outcome:
    """Pack the adapter, and upload it in one commit."""
    package = hub.pack(options.path, options.repo_id)
    files = [package.file, *([package.embeddings] if package.embeddings else [])]
    bytes_ = sum(file.stat().st_size for file in files)
    facts: dict[str, object] = {
        "repository": options.repo_id,
        "bytes": bytes_,
        "thumbnail": package.thumbnail is not None,
        "embeddings": package.embeddings is not None,
        "card": package.card,
    }
    if options.dry_run:
        also = {"embeddings.safetensors": package.embeddings, "a thumbnail": package.thumbnail}
        what = ", ".join(["the adapter", "README.md", *(name for name, one in also.items() if one)])
        head = f"Would upload {what} ({layout.size(bytes_)}) to {options.repo_id}. README.md:"
        return Outcome(f"{head}\n\n{package.card}", facts)
    url = hub.push(package, options.repo_id, private=options.private)
    return Outcome(f"Uploaded {layout.size(bytes_)} to {url}", {**facts, "url": url})


COMMAND = Command(
    name="push",
    summary="upload an adapter to the Hugging Face hub",
    description="Upload an adapter with a model card that says how to use it. Log in once with\n"
    "`hf auth login`. The card is made of what the file says about itself (see `shira tag`).",
    examples="""  shira push adapters/robot me/robot --dry-run
  shira push adapters/robot me/robot
  shira push robot.safetensors me/robot --private --json
""",
    arguments=arguments,
    run=run,
)
