"""What commands are given: adapters, some with a strength, and base models."""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from pathlib import Path

from shira_diffusion import fitting, formats, hub
from shira_diffusion.adapter import Adapter
from shira_diffusion.errors import BaseModelError
from shira_diffusion.formats.checkpoint import Checkpoint


@dataclass(frozen=True)
class Weighted:
    """An adapter's file and the strength at which it is taken."""

    path: Path
    strength: float


def weighted(text: str) -> Weighted:
    """`FILE`, or `FILE=STRENGTH`; for argparse."""
    path, mark, number = text.rpartition("=")
    if not mark:
        return Weighted(Path(text), 1.0)
    try:
        strength = float(number)
    except ValueError:
        # A file's name may hold the sign too.
        return Weighted(Path(text), 1.0)
    if not math.isfinite(strength):
        raise argparse.ArgumentTypeError(f"the strength {number!r} is not a finite number")
    return Weighted(Path(path), strength)


def add_base(parser: argparse.ArgumentParser, purpose: str) -> None:
    """Declare `--base`."""
    parser.add_argument(
        "--base",
        metavar="BASE",
        help=f"{purpose}: a diffusers folder, a .safetensors checkpoint or a hub id",
    )


def checkpoint(source: str) -> Checkpoint:
    """The checkpoint at a path, or of a hub id, whose weights are then downloaded."""
    path = Path(source).expanduser()
    if path.exists():
        return Checkpoint(path)
    if hub.is_repository(source) and path.suffix != ".safetensors":
        return Checkpoint(hub.fetch_base(source))
    raise BaseModelError(
        f"{source}: there is no such folder or file, and it is no hub id like 'organisation/model'"
    )


def adapter(path: Path, base: Checkpoint | None) -> Adapter:
    """The adapter in a file or folder; the base's shapes help where PEFT's file lacks them."""
    return formats.load(path, shapes=base.shapes if base else None)


def resolved(path: Path, base: Checkpoint | None) -> Adapter:
    """Likewise, a DoRA as the change that it makes to the base, where there is one."""
    found = adapter(path, base)
    return found if base is None else fitting.resolved(found, base)
