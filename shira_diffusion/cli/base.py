"""The base model that a command is given, through the one file that knows diffusers."""

from __future__ import annotations

import argparse
from typing import Any

from shira_diffusion.errors import BaseModelError


def add(parser: argparse.ArgumentParser, *, required: bool, purpose: str) -> None:
    """Declare `--base`."""
    parser.add_argument(
        "--base",
        required=required,
        metavar="BASE",
        help=f"{purpose}: a diffusers folder, a .safetensors checkpoint or a hub id",
    )


def load(source: str) -> Any:
    """The pipeline at `source`, on the CPU and in the precision that it is stored in.

    Raises `BaseModelError`, which also says how to install what is missing.
    """
    try:
        from shira_diffusion import pipeline
    except ImportError as error:
        raise BaseModelError(
            f"a base model needs diffusers, which is not installed ({error.name}); "
            "pip install 'shira-diffusion[diffusers]'"
        ) from error
    pipeline.hush()
    return pipeline.load_base(source, device="cpu")
