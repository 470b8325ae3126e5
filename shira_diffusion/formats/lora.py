"""LoRA and DoRA files of diffusers, PEFT and kohya, read as factors and written by SVD."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shira_diffusion.adapter import Adapter, AdapterInfo, Delta
from shira_diffusion.delta import VALUE_DTYPES
from shira_diffusion.energy import Energy
from shira_diffusion.errors import DeltaError, FormatError, SettingError, ShiraError
from shira_diffusion.formats import container, diff, metadata, names, peft
from shira_diffusion.formats.kohya import Naming, flat_name
from shira_diffusion.lowrank import DoraDelta, LowRankDelta
from shira_diffusion.modelspec import kohya
from shira_diffusion.progress import Progress, counted
from shira_diffusion.svd import Factors, factored

# diffusers writes PEFT's settings of every component under this key, as "unet.lora_alpha".
_PEFT_KEY = "lora_adapter_metadata"
_PARTS = {
    part: re.compile(
        rf"(.+?)(?:\.{peft_name}(?:\.\w+)?|[._]lora\.{part}|\.lora_linear_layer\.{part}"
        rf"|\.lora_{part})\.weight"
    )
    for part, peft_name in (("down", "lora_A"), ("up", "lora_B"))
} | {
    "alpha": re.compile(r"(.+?)(?:\.lora)?\.alpha"),
    "magnitude": re.compile(
        r"(.+?)(?:\.dora_scale|\.lora_magnitude_vector(?:\.\w+)?(?:\.weight)?)"
    ),
}


def is_lora(keys: Collection[str]) -> bool:
    """Whether tensors of these names are a LoRA's: some layer has a factor."""
    return any(_PARTS["down"].fullmatch(key) for key in keys)


def load(path: str | Path) -> Adapter:
    """Read a LoRA or DoRA; what its file says about name and trigger words is kept.

    A folder is one that PEFT writes. Factors stay factors, see `LowRankDelta`, in the dtype that
    they have; dense changes beside them (`.diff`) are read too. The scale is alpha / rank (alpha /
    sqrt(rank) for rsLoRA); without an alpha it is 1. Raises `FormatError` for layers that are
    something else (LoHa, LoKr, LoRA's own biases) and for broken ones.
    """
    path = Path(path)
    file = container.read(path / peft.WEIGHTS if path.is_dir() else path)
    try:
        settings = _Settings.of(path, file.metadata)
        deltas: dict[str, Delta] = {}
        dense = {key: name for key in file.tensors if (name := diff.weight_name(key)) is not None}
        factors = {key: one for key, one in file.tensors.items() if key not in dense}
        for layer, parts in _layers(factors).items():
            deltas[f"{layer}.weight"] = _delta(layer, parts, settings)
        for key, name in dense.items():
            if name in deltas:
                raise FormatError(f"{key!r} is a second change of {name!r}")
            deltas[name] = diff.delta(key, file.tensors[key])
        info = metadata.decode(file.metadata)
        if info is None:
            turned = any(isinstance(one, DoraDelta) for one in deltas.values())
            foreign = metadata.foreign(path, file.metadata)
            info = dataclasses.replace(foreign, method="dora" if turned else "lora")
        return Adapter(deltas, info)
    except ShiraError as error:
        raise FormatError(f"{path}: {error}; get a plain LoRA for SDXL") from error


def save(
    adapter: Adapter,
    path: str | Path,
    rank: int,
    *,
    naming: Naming | None = None,
    dtype: torch.dtype = torch.float16,
    progress: Progress | None = None,
) -> Energy:
    """Write the best LoRA of `rank` for each weight; returns how much of the change it keeps.

    It is exact, in `dtype`, where the change lies within `rank` rows or columns or is a LoRA of at
    most this rank. Without `naming` the keys are those of `pipe.load_lora_weights`, else kohya's
    flat ones, which A1111 and ComfyUI read too. The file's method is "lora"; its training notes
    what it was made of. Raises `FormatError` for weights that are no matrix or convolution,
    `DeltaError` for a DoRA, and then nothing is written.
    """
    if rank < 1:
        raise SettingError(f"the rank must be at least 1, got {rank}")
    for name, one in adapter.deltas.items():
        one.require_no_base()
        if len(one.shape) < 2 or not name.endswith(".weight"):
            raise FormatError(
                f"a LoRA changes matrices and convolutions, but this adapter changes {name!r} of "
                f"shape {one.shape}; write dense changes or a checkpoint instead"
            )
    tensors: dict[str, Tensor] = {}
    whole, lost = {}, {}
    for name in counted(adapter.deltas, progress):
        factors = factored(adapter.deltas[name], rank).rounded(dtype)
        tensors |= _stored(name.removesuffix(".weight"), factors, rank, naming)
        whole[name], lost[name] = factors.whole, factors.lost
    info = _as_lora(adapter.info, rank)
    stated = {**metadata.encode(info), **kohya(info, rank=rank), "format": "pt"}
    container.write(Path(path), tensors, stated)
    return Energy(whole, lost)


def _as_lora(info: AdapterInfo, rank: int) -> AdapterInfo:
    """What the file says about itself: programs read its method as what it is."""
    training = {**info.training, "converted": f"rank {rank} of {info.method}"}
    return dataclasses.replace(info, method="lora", mask="", training=training)


def _stored(layer: str, factors: Factors, rank: int, naming: Naming | None) -> dict[str, Tensor]:
    if naming is None:
        start, down, up = layer, "lora_A", "lora_B"
    else:
        start, down, up = flat_name(layer, naming), "lora_down", "lora_up"
    stored = {f"{start}.{down}.weight": factors.down, f"{start}.{up}.weight": factors.up}
    return stored if naming is None else {**stored, f"{start}.alpha": torch.tensor(float(rank))}


def _layers(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The parts ("down", "up", "alpha", "magnitude") of every layer, by its path."""
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
    # diffusers before 0.22 kept the factors in attention processors: `processor.to_q_lora.down`.
    path = re.sub(r"\.processor\.to_out$", ".to_out.0", stored).replace(".processor.", ".")
    return names.canonical(path)


def _delta(layer: str, parts: Mapping[str, Tensor], settings: _Settings) -> LowRankDelta:
    down, up = parts.get("down"), parts.get("up")
    if down is None or up is None:
        raise FormatError(f"the layer {layer!r} lacks one of its two factors")
    if (
        down.dim() not in (2, 4)
        or up.dim() != down.dim()
        or math.prod(up.shape[2:]) != 1
        or up.shape[1] != down.shape[0]
        or not down.shape[0]
    ):
        raise FormatError(
            f"the factors of {layer!r} do not multiply: {tuple(up.shape)} and {tuple(down.shape)}"
        )
    scale = settings.scale(layer, down.shape[0], parts.get("alpha"))
    shape = (up.shape[0], *down.shape[1:])
    factors = _number(layer, up).flatten(1), _number(layer, down).flatten(1)
    magnitude = parts.get("magnitude")
    try:
        if magnitude is None:
            settings.require_plain(layer)
            return LowRankDelta(*factors, scale, shape)
        return DoraDelta(*factors, scale, shape, _along(_number(layer, magnitude), shape))
    except DeltaError as error:
        raise FormatError(f"the layer {layer!r}: {error}") from error


def _number(layer: str, tensor: Tensor) -> Tensor:
    if not tensor.is_floating_point():
        raise FormatError(f"a tensor of {layer!r} is {tensor.dtype}, not floating-point numbers")
    return tensor if tensor.dtype in VALUE_DTYPES else tensor.float()


def _along(magnitude: Tensor, shape: tuple[int, ...]) -> Tensor:
    """PEFT's (out,) or (1, out, 1, 1) and LyCORIS' (out, 1, ...) or (1, in, ...), as a matrix's."""
    if magnitude.numel() == shape[0] and (magnitude.dim() < 2 or magnitude.shape[0] == shape[0]):
        return magnitude.reshape(-1, 1)
    if magnitude.dim() == 4 and tuple(magnitude.shape) == (1, shape[0], 1, 1):
        return magnitude.reshape(-1, 1)
    return magnitude.reshape(1, -1)


class _Settings:
    """PEFT's settings by component, as diffusers' metadata or PEFT's own file have them."""

    def __init__(self, stated: Mapping[str, Any], whole: bool):
        self._stated, self._whole = stated, whole

    @classmethod
    def of(cls, path: Path, stated: Mapping[str, str]) -> _Settings:
        """Those of the file's metadata, else those of PEFT's folder."""
        if _PEFT_KEY in stated:
            settings = metadata.parse_json(stated[_PEFT_KEY], _PEFT_KEY)
            if not isinstance(settings, dict):
                raise FormatError(f"{_PEFT_KEY} is not a JSON object")
            return cls(settings, whole=False)
        if path.is_dir():
            return cls(peft.read_config(path), whole=True)
        return cls(peft.read_config(path.parent) if path.name == peft.WEIGHTS else {}, whole=True)

    def scale(self, layer: str, rank: int, stored: Tensor | None) -> float:
        """Alpha / rank of a layer, by its own alpha where the file has one."""
        _, _, path = layer.partition(".")
        alpha: object = self._get(layer, "lora_alpha", rank)
        pattern = self._get(layer, "alpha_pattern", None)
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
        return number / (math.sqrt(rank) if self._get(layer, "use_rslora", False) else rank)

    def require_plain(self, layer: str) -> None:
        """Raise `FormatError` for a DoRA's layer, when it lacks its magnitude."""
        if self._get(layer, "use_dora", False):
            raise FormatError(f"it is a DoRA, but the layer {layer!r} lacks its magnitude")

    def _get(self, layer: str, key: str, default: object) -> Any:
        component = layer.partition(".")[0]
        return self._stated.get(key if self._whole else f"{component}.{key}", default)
