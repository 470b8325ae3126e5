"""`shira inspect`: what is in an adapter file."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path

from shira_diffusion import metrics, summary
from shira_diffusion.adapter import Adapter, AdapterInfo, Delta
from shira_diffusion.cli import layout, sources
from shira_diffusion.cli.command import Command, Outcome
from shira_diffusion.delta import SparseDelta
from shira_diffusion.formats.checkpoint import Checkpoint
from shira_diffusion.summary import Part


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("file", type=Path, metavar="FILE", help="an adapter: SHiRA or LoRA")
    parser.add_argument(
        "--with",
        dest="others",
        type=Path,
        nargs="+",
        action="extend",
        default=[],
        metavar="FILE",
        help="other adapters: how many entries both change, and how much they interfere",
    )
    sources.add_base(parser, "needed for a DoRA, whose change depends on it")
    parser.add_argument("--layers", action="store_true", help="a row for every weight")


def run(options: argparse.Namespace) -> Outcome:
    """Read the file, and describe it."""
    base = sources.checkpoint(options.base) if options.base else None
    adapter = sources.adapter(options.file, base)
    layers = summary.layers(adapter, base.read if base else None)
    whole = summary.joined("all", layers)
    overlaps = _overlaps(options, base) if options.others else {}
    rows = layers if options.layers else summary.blocks(layers)
    size = layout.bytes_of(options.file, "*.safetensors")
    parts = [
        f"{options.file}: {_kind(adapter.info)}, {layout.size(size)}",
        layout.pairs(_about(adapter.info)),
        f"What it changes, {_dtypes(adapter)}",
        _rows([*rows, whole]),
        f"How large the changes are, |delta|{_zeros(whole)}",
        layout.bars(histogram(whole)),
        *(_meeting(name, facts) for name, facts in overlaps.items()),
    ]
    facts = {
        "file": str(options.file),
        "bytes": size,
        "info": _plain(adapter.info),
        "total": _facts(whole),
        "histogram": histogram(whole),
        "layers": [_facts(part) for part in layers],
        "overlap": overlaps,
    }
    return Outcome("\n\n".join(part for part in parts if part), facts)


def histogram(part: Part) -> dict[str, int]:
    """Entries by the magnitude that their bar starts at, from the first to the last not empty."""
    labels = [
        "0",
        *(f"{edge:.1e}".replace("e-0", "e-").replace("e+0", "e+") for edge in summary.EDGES),
    ]
    filled = [number for number, count in enumerate(part.counts) if count]
    if not filled:
        return {}
    return {labels[at]: part.counts[at] for at in range(filled[0], filled[-1] + 1)}


def _kind(info: AdapterInfo) -> str:
    mask = f", mask {info.mask}" if info.mask else ""
    return f"{info.method} adapter {info.name!r}{mask}"


def _about(info: AdapterInfo) -> dict[str, str]:
    marks = ", ".join(f"{part} {mark[:12]}" for part, mark in info.base_fingerprint.items())
    return {
        "title": info.title,
        "base": f"{info.base_model or 'unknown'} ({marks or 'no fingerprint'})",
        "trigger words": ", ".join(info.trigger_words) or "none are stated",
        "description": info.description,
        "training": ", ".join(f"{key} {value}" for key, value in info.training.items()),
        "tags": ", ".join(info.tags),
        "author": info.author,
        "licence": info.license,
        "date": info.date,
    }


def _dtypes(adapter: Adapter) -> str:
    names = {_stored_as(delta) for delta in adapter.deltas.values()}
    return " and ".join(sorted(names)) or "nothing at all"


def _stored_as(delta: Delta) -> str:
    if isinstance(delta, SparseDelta):
        return f"values in {str(delta.values.dtype).removeprefix('torch.')}"
    return f"factors of rank {delta.rank} in {str(delta.up.dtype).removeprefix('torch.')}"


def _rows(parts: Sequence[Part]) -> str:
    return layout.table(
        ("", "weights", "entries", "of", "density", "rms", "largest"),
        [
            (
                part.name,
                f"{part.weights:,}",
                f"{part.entries:,}",
                f"{part.numel:,}",
                layout.percent(part.density),
                f"{part.rms:.2e}",
                f"{part.largest:.2e}",
            )
            for part in parts
        ],
    )


def _zeros(whole: Part) -> str:
    return f" ({whole.zeros:,} entries are 0 and have no bar)" if whole.zeros else ""


def _overlaps(options: argparse.Namespace, base: Checkpoint | None) -> dict[str, dict[str, float]]:
    """How the adapter meets each of the others, by the other's file."""
    own = sources.resolved(options.file, base)
    return {str(file): _overlap(own, sources.resolved(file, base)) for file in options.others}


def _overlap(adapter: Adapter, other: Adapter) -> dict[str, float]:
    return {
        "overlap": metrics.overlap(adapter, other),
        "awom": metrics.awom(adapter, other),
        "awor": metrics.awor(adapter, other),
    }


def _meeting(name: str, facts: dict[str, float]) -> str:
    return (
        f"Beside {name}\n"
        f"  {layout.percent(facts['overlap'])} of the smaller one's entries are changed by both\n"
        f"  AWOM {facts['awom']:.3g} (0: no interference), "
        f"AWOR {facts['awor']:.4f} (1: no interference)"
    )


def _plain(info: AdapterInfo) -> dict[str, object]:
    values = {field.name: getattr(info, field.name) for field in dataclasses.fields(info)}
    return {key: dict(one) if hasattr(one, "items") else one for key, one in values.items()}


def _facts(part: Part) -> dict[str, object]:
    counted = {key: one for key, one in dataclasses.asdict(part).items() if key != "counts"}
    return {**counted, "density": part.density, "rms": part.rms}


COMMAND = Command(
    name="inspect",
    summary="what an adapter file holds",
    description="Say what an adapter file holds: where it came from, which weights it changes, by\n"
    "how much, and how it meets other adapters.",
    examples="""  shira inspect adapters/robot/adapter.safetensors
  shira inspect adapters/robot/adapter.safetensors --layers
  shira inspect robot.safetensors --with ink.safetensors comic.safetensors
  shira inspect robot.safetensors --json | jq .info.trigger_words
""",
    arguments=arguments,
    run=run,
)
