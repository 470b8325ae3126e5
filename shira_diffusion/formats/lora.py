"""LoRA files (arXiv 2106.09685) of diffusers, PEFT and kohya, as the exact dense change they are.

Each layer's scale * up @ down is computed in fp32 and kept over all entries of its weight.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shira_diffusion.adapter import Adapter, AdapterInfo
from shira_diffusion.delta import SparseDelta, index_dtype
from shira_diffusion.errors import FormatError, ShiraError
from shira_diffusion.formats import container, kohya, metadata

# diffusers writes PEFT's settings of every component under this key, as "unet.lora_alpha".
_PEFT_KEY = "lora_adapter_metadata"
_PARTS = {
    part: re.compile(
        rf"(.+?)(?:\.{peft}(?:\.\w+)?|[._]lora\.{part}|\.lora_linear_layer\.{part}"
        rf"|\.lora_{part})\.weight"
    )
    for part, peft in (("down", "lora_A"), ("up", "lora_B"))
} | {"alpha": re.compile(r"(.+?)(?:\.lora)?\.alpha")}
_COMPONENTS = ("unet.", "text_encoder.", "text_encoder_2.")
# A product is as large as its weight. Two thin factors can claim any size, and no weight of a
# diffusion model comes near this one.
_MOST_ENTRIES = 2**28


def is_lora(names: Collection[str]) -> bool:
    """Whether tensors of these names are a LoRA's: some layer has a factor."""
    return any(_PARTS["down"].fullmatch(name) for name in names)


def load(path: str | Path) -> Adapter:
    """Read a LoRA; what its file says about name and trigger words is kept.

    The scale is alpha / rank (alpha / sqrt(rank) for rsLoRA); without an alpha it is 1. Raises
    `FormatError` for layers that are more than a LoRA (DoRA, LoHa, biases) and for broken ones.
    """
    path = Path(path)
    file = container.read(path)
    try:
        settings = _peft_settings(file.metadata)
        every_index: dict[int, Tensor] = {}
        deltas = {}
        for layer, parts in _layers(file.tensors).items():
            change = _product(layer, parts, settings)
            numel = change.numel()
            if numel not in every_index:
                every_index[numel] = torch.arange(numel, dtype=index_dtype(numel))
            deltas[f"{layer}.weight"] = SparseDelta(
                every_index[numel], change.flatten(), tuple(change.shape)
            )
        return Adapter(deltas, metadata.decode(file.metadata) or foreign_info(path, file.metadata))
    except ShiraError as error:
        raise FormatError(f"{path}: {error}; get a plain LoRA for SDXL") from error


def _layers(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The parts ("down", "up", "alpha") of every layer, by its path with the component."""
    layers: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        for part, pattern in _PARTS.items():
            match = pattern.fullmatch(name)
            if match is not None:
                parts = layers.setdefault(_layer_path(match[1]), {})
                if part in parts:
                    raise FormatError(f"{name!r} is a second {part} factor of its layer")
                parts[part] = tensor
                break
        else:
            raise FormatError(f"{name!r} is not part of a plain LoRA")
    return layers


def _layer_path(stored: str) -> str:
    if stored.startswith("lora_"):
        return kohya.layer_path(stored)
    # diffusers before 0.22 kept the factors in attention processors: `processor.to_q_lora.down`.
    path = re.sub(r"\.processor\.to_out$", ".to_out.0", stored).replace(".processor.", ".")
    if not path.startswith(_COMPONENTS):
        raise FormatError(f"the layer {stored!r} names no component (unet, text_encoder)")
    return path


def _product(layer: str, parts: Mapping[str, Tensor], settings: Mapping[str, Any]) -> Tensor:
    """The change, scale * up @ down in fp32; (out, in) or (out, in, kh, kw) as the weight."""
    down, up = parts.get("down"), parts.get("up")
    if down is None or up is None:
        raise FormatError(f"the layer {layer!r} lacks one of its two factors")
    rank = down.shape[0] if down.dim() else 0
    fits = down.dim() in (2, 4) and up.dim() == down.dim() and up.shape[1] == rank > 0
    if (
        not fits
        or math.prod(up.shape[2:]) != 1
        or not (down.is_floating_point() and up.is_floating_point())
    ):
        raise FormatError(
            f"the factors of {layer!r} do not multiply: {tuple(up.shape)} and {tuple(down.shape)}"
        )
    shape = (up.shape[0], *down.shape[1:])
    if math.prod(shape) > _MOST_ENTRIES:
        raise FormatError(f"the layer {layer!r} claims a weight of the size {shape}")
    product = up.flatten(1).float() @ down.flatten(1).float()
    return (product * _scale(layer, rank, parts.get("alpha"), settings)).reshape(shape)


def _scale(layer: str, rank: int, stored: Tensor | None, settings: Mapping[str, Any]) -> float:
    component, _, path = layer.partition(".")
    alpha: object = settings.get(f"{component}.lora_alpha", rank)
    pattern = settings.get(f"{component}.alpha_pattern")
    for suffix, special in pattern.items() if isinstance(pattern, dict) else ():
        if path == suffix or path.endswith(f".{suffix}"):
            alpha = special
    if stored is not None:
        alpha = stored.item() if stored.numel() == 1 else None
    try:
        number = float(alpha) if isinstance(alpha, (int, float)) else math.nan
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise FormatError(f"the alpha of {layer!r} is not a number")
    return number / (math.sqrt(rank) if settings.get(f"{component}.use_rslora") else rank)


def _peft_settings(stated: Mapping[str, str]) -> Mapping[str, Any]:
    if _PEFT_KEY not in stated:
        return {}
    settings = metadata.parse_json(stated[_PEFT_KEY], _PEFT_KEY)
    if not isinstance(settings, dict):
        raise FormatError(f"{_PEFT_KEY} is not a JSON object")
    if any(key.endswith("use_dora") and value for key, value in settings.items()):
        raise FormatError("it is a DoRA, whose change depends on the base weight")
    return settings


def foreign_info(path: Path, stated: Mapping[str, str]) -> AdapterInfo:
    """What a LoRA that we did not write says about itself, by ModelSpec's and kohya's keys."""

    def spec(key: str) -> str:
        return stated.get(f"modelspec.{key}", "")

    def words(key: str) -> tuple[str, ...]:
        return tuple(word.strip() for word in spec(key).split(",") if word.strip())

    return AdapterInfo(
        name=stated.get("ss_output_name") or path.stem,
        title=spec("title"),
        base_model=stated.get("ss_base_model_version", ""),
        method="lora",
        trigger_words=words("trigger_phrase"),
        tags=words("tags"),
        license=spec("license"),
        author=spec("author"),
        description=spec("description"),
        date=spec("date"),
    )
