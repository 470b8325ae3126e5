"""What a person orders on the page, and the trainer's command line that does it."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from shira_diffusion.errors import SettingError
from studio.shelf.naming import plain

EXTRAS = frozenset((
    "accumulation", "alpha", "batch", "blocks", "buckets", "budget", "calibration_batches",
    "checkpoint_every", "clip", "crops", "ema", "flip", "gradient_checkpointing",
    "keep_checkpoints", "license", "mask", "min_snr_gamma", "new_token", "noise_offset",
    "optimizer", "precision", "prior_batch", "prior_guidance", "prior_images", "prior_prompts",
    "prior_steps", "prior_weight", "rank", "sample_guidance", "sample_seed", "sample_steps",
    "schedule", "schedule_cycles", "size_conditioning", "targets", "text_lr", "token_init",
    "token_lr", "token_vectors", "train_text_encoders", "warmup", "weight_decay",
))  # fmt: skip
"""Settings that may be written by hand: none of them names a file or a place."""


@dataclass(frozen=True)
class Order:
    """One training as it was asked for; None and "" leave a setting to the preset.

    `name` is the adapter's folder, made by the studio and never by a person.
    """

    title: str
    name: str
    kind: str
    preset: str
    method: str
    trigger: str = ""
    steps: int | None = None
    lr: float | None = None
    density: float | None = None
    resolution: int | None = None
    seed: int | None = None
    sample_every: int | None = None
    sample_prompts: tuple[str, ...] = ()
    description: str = ""
    extras: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> str:
        """As it is written beside the run."""
        return json.dumps(asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str) -> "Order":
        """Read it again; raises `ValueError` or `TypeError` for anything else."""
        stored = json.loads(text)
        known = {one.name for one in fields(cls)}
        values = {key: value for key, value in stored.items() if key in known}
        values["sample_prompts"] = tuple(values.get("sample_prompts", ()))
        return cls(**values)


@dataclass(frozen=True)
class Places:
    """Where a run reads and writes; the base is a folder, a file or a hub id."""

    base: str
    device: str
    adapters: Path
    cache: Path


def read_extras(text: str) -> dict[str, str]:
    """Settings written as `key=value`, one a line; raises `SettingError` with every fault."""
    found, faults = {}, []
    for line in (text or "").splitlines():
        key, equals, value = (part.strip() for part in line.partition("="))
        if not line.strip():
            continue
        if not equals:
            faults.append(f"{plain(line, 60)!r} is not written as key=value")
        elif key not in EXTRAS:
            faults.append(f"{plain(key, 60)!r} cannot be set here")
        else:
            found[key] = plain(value)
    if faults:
        raise SettingError(f"Further settings: {'; '.join(faults)}.")
    return found


def command(order: Order, places: Places, *, data: Path, run: Path) -> list[str]:
    """The trainer's arguments: the preset and every setting that the order or the place gives."""
    given: dict[str, Any] = {
        "data": str(data),
        "name": order.name,
        "run": str(run),
        "adapters_dir": str(places.adapters),
        "cache_dir": str(places.cache),
        "base": places.base,
        "device": places.device,
        "title": order.title,
        "method": order.method,
        "tags": [order.kind],
        "description": order.description,
        "trigger_words": [order.trigger] if order.trigger else None,
        "steps": order.steps,
        "lr": order.lr,
        "density": order.density,
        "resolution": order.resolution,
        "seed": order.seed,
        "sample_every": order.sample_every,
        "sample_prompts": list(order.sample_prompts) or None,
    }
    settings = [f"{key}={_text(value)}" for key, value in given.items() if value not in (None, "")]
    settings += [f"{key}={value}" for key, value in order.extras.items()]
    return [order.preset, "--set", *settings]


def _text(value: str | float | Sequence[str]) -> str:
    """A value as the trainer's `--set` reads it: TOML, but texts as they are."""
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False)


def number(value: float | None, what: str, *, low: float = 0) -> float | None:
    """A number of the form, None where its field is empty; raises `SettingError` if impossible."""
    if value is None:
        return None
    if not math.isfinite(value) or value < low:
        raise SettingError(f"{what} is {value:g}; it must be at least {low:g}.")
    return value
