"""What other programs show of an adapter file: ModelSpec 1.0.1, and kohya's `ss_` keys.

ModelSpec: https://github.com/Stability-AI/ModelSpec. Kohya's keys are those of
https://github.com/kohya-ss/sd-scripts that A1111, Forge and their extensions look at.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from pathlib import Path

from shira_diffusion.adapter import AdapterInfo
from shira_diffusion.errors import SettingError

THUMBNAIL_KEY = "modelspec.thumbnail"
# Every program that lists files reads the whole header; ModelSpec asks for "very small".
_LARGEST_THUMBNAIL = 256 * 1024
_PICTURES = {b"\x89PNG\r\n\x1a\n": "png", b"\xff\xd8\xff": "jpeg", b"RIFF": "webp"}
_SIDES = re.compile(r"([1-9]\d{0,5})(?:x([1-9]\d{0,5}))?", re.ASCII)
# Methods whose files are LoRA files, whatever was trained; ModelSpec's class is the file's.
_LOW_RANK = frozenset({"lora", "dora", "symlora"})
# By ModelSpec's name of the architecture, what kohya's trainers call it.
_KOHYA_BASES = {
    "stable-diffusion-xl-v1-base": "sdxl_base_v1-0",
    "stable-diffusion-v1": "sd_v1",
}
# Kohya's names of settings that our trainers note.
_KOHYA_SETTINGS = {
    "steps": "ss_steps",
    "lr": "ss_learning_rate",
    "schedule": "ss_lr_scheduler",
    "optimizer": "ss_optimizer",
    "seed": "ss_seed",
    "images": "ss_num_train_images",
    "resolution": "ss_resolution",
    "min_snr_gamma": "ss_min_snr_gamma",
    "noise_offset": "ss_noise_offset",
}


def modelspec(info: AdapterInfo) -> dict[str, str]:
    """The `modelspec.` keys of an adapter; what is not known is left out.

    The hash of the tensors is added when the file is written.
    """
    words = ", ".join(info.trigger_words)
    hints = [f"Trigger words: {words}"] if words else []
    hints += [f"Strength: {info.strength}"] if info.strength else []
    spec = {
        "sai_model_spec": "1.0.1",
        "architecture": f"{info.architecture}/{'lora' if info.method in _LOW_RANK else 'shira'}",
        "implementation": info.implementation,
        "title": info.title or info.name,
        "description": info.description,
        "author": info.author,
        "date": info.date,
        "license": info.license,
        "usage_hint": "; ".join(hints),
        "trigger_phrase": words,
        "tags": ", ".join(info.tags),
        "merged_from": info.training.get("fused", ""),
        "resolution": _resolution(info.training.get("resolution", "")),
    }
    return {f"modelspec.{key}": value for key, value in spec.items() if value}


def kohya(info: AdapterInfo, *, rank: int | None = None) -> dict[str, str]:
    """The `ss_` keys by which A1111 and Forge tell SDXL and list trigger words.

    `rank` is that of a LoRA file, whose alpha is then the same; dense changes have none.
    """
    base = _KOHYA_BASES.get(info.architecture, "")
    known = {
        "ss_base_model_version": base,
        "ss_sd_model_name": info.base_model,
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(rank or ""),
        "ss_network_alpha": str(rank or ""),
        "ss_output_name": info.name,
        "ss_tag_frequency": _tag_frequency(info),
        **{key: info.training.get(ours, "") for ours, key in _KOHYA_SETTINGS.items()},
    }
    return {key: value for key, value in known.items() if value}


def thumbnail(path: Path) -> dict[str, str]:
    """The picture in a file as the value of `modelspec.thumbnail`.

    Raises `SettingError` for one that is missing, no PNG, JPEG or WebP, or too large.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise SettingError(f"{path}: it cannot be read ({error.strerror or error})") from error
    kind = next((name for start, name in _PICTURES.items() if data.startswith(start)), None)
    if kind is None or (kind == "webp" and data[8:12] != b"WEBP"):
        raise SettingError(f"{path}: it is no PNG, JPEG or WebP; save the thumbnail as one")
    if len(data) > _LARGEST_THUMBNAIL:
        raise SettingError(
            f"{path}: {len(data):,} bytes are too many for a thumbnail; make it 256 x 256 "
            f"(at most {_LARGEST_THUMBNAIL:,} bytes)"
        )
    return {THUMBNAIL_KEY: f"data:image/{kind};base64,{base64.b64encode(data).decode()}"}


def picture(metadata: Mapping[str, str]) -> bytes | None:
    """The thumbnail in a file's metadata, None where there is none or it cannot be decoded."""
    head, _, text = metadata.get(THUMBNAIL_KEY, "").partition(";base64,")
    if not head.startswith("data:image/"):
        return None
    try:
        return base64.b64decode(text, validate=True) or None
    except ValueError:
        return None


def _tag_frequency(info: AdapterInfo) -> str:
    """Trigger words as kohya counts tags: by folder of images, how many captions have them."""
    if not info.trigger_words:
        return ""
    images = info.training.get("images", "")
    count = int(images) if images.isascii() and images.isdecimal() and len(images) < 10 else 1
    return json.dumps({info.name: dict.fromkeys(info.trigger_words, count)})


def _resolution(stated: str) -> str:
    """`1024` as `1024x1024`; what is neither a side nor width x height is not known."""
    sides = _SIDES.fullmatch(stated)
    return f"{sides[1]}x{sides[2] or sides[1]}" if sides else ""
