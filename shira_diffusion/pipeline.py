"""Base models through diffusers; the only file here that knows diffusers.

Anything of Stable Diffusion XL's architecture (arXiv 2307.01952): the embedded base, a folder, a
checkpoint file, or a model on the hub.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Sequence
from itertools import count
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from diffusers import StableDiffusionXLPipeline
from huggingface_hub import snapshot_download
from torch import nn

from shira_diffusion import formats
from shira_diffusion.adapter import Adapter
from shira_diffusion.components import component_modules
from shira_diffusion.errors import BaseModelError, FormatError, SettingError
from shira_diffusion.fingerprint import fingerprint
from shira_diffusion.switch import AdapterSwitcher
from shira_diffusion.targets import TARGETS, chosen, within
from shira_diffusion.words import pool_at_end

__all__ = [
    "TARGETS",
    "component_modules",
    "fingerprint",
    "load_adapters",
    "load_base",
    "target_weights",
]

_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
# Two switchers of one model would undo each other's work, so a pipeline has one.
_SWITCHERS: WeakKeyDictionary[Any, AdapterSwitcher] = WeakKeyDictionary()


def load_base(
    source: str | Path,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    config: str | Path | None = None,
) -> StableDiffusionXLPipeline:
    """Load a base model: a diffusers folder, a single `.safetensors` checkpoint, or a hub id.

    Without `device` the best one there is; without `dtype` fp32 on CPU, bf16 on CUDA (fp16 where
    the GPU lacks it), fp16 on MPS. A single file holds no configuration: diffusers gets SDXL's
    from the hub or its cache, unless `config` names a diffusers folder with the right one.
    On CPU denormal numbers count as zero from here on, as they slow images down many times.
    Raises `BaseModelError` that says what is wrong with `source`, and `SettingError` for a device
    that is not there.
    """
    where = _usable(device) if device is not None else _best_device()
    precision = dtype if dtype is not None else _fitting_dtype(where)
    if where.type == "cpu":
        torch.set_flush_denormal(True)
    path = Path(source).expanduser()
    try:
        if path.is_dir():
            pipe = _from_folder(path, precision)
        elif path.is_file():
            pipe = _from_file(path, precision, config)
        elif _HUB_ID.fullmatch(str(source)) and path.suffix != ".safetensors":
            pipe = StableDiffusionXLPipeline.from_pretrained(
                str(source), dtype=precision, use_safetensors=True
            )
        else:
            raise BaseModelError(
                "there is no such folder or file, and it is no hub id like 'organisation/model'"
            )
        pool_at_end(pipe)
        return pipe.to(where)
    except Exception as error:
        # diffusers and the hub's client raise what they like; to the user all of it means this.
        raise BaseModelError(f"the base model {str(source)!r} cannot be loaded: {error}") from error


def load_adapters(
    pipe: Any,
    *sources: str | Path | Adapter,
    strength: float = 1.0,
    weight_name: str | None = None,
) -> AdapterSwitcher:
    """Load adapters into an SDXL pipeline and set them to `strength`; returns its switcher.

    A source is an `Adapter`, a file or folder of any format in `shira_diffusion.formats`, or a hub
    id, of which `weight_name` is the file. Each is named as its file says, with a number where the
    name is taken. LoRA and SHiRA go together; all are written into the weights and come off
    again bit for bit with `switcher.clear()`. Later calls with the same `pipe` add to the same
    switcher. Raises `FormatError`, `MismatchError` or `SettingError`, and then nothing is loaded.
    """
    switcher = _SWITCHERS.get(pipe)
    if switcher is None:
        switcher = AdapterSwitcher(pipe)
    adapters = [_adapter(source, pipe, weight_name) for source in sources]
    added: list[str] = []
    try:
        for adapter in adapters:
            name = _free_name(adapter.info.name, switcher.names)
            switcher.add(name, adapter)
            added.append(name)
        switcher.set({**switcher.active, **dict.fromkeys(added, strength)})
    except BaseException:
        for name in added:
            switcher.remove(name)
        raise
    _SWITCHERS[pipe] = switcher
    return switcher


def _adapter(source: str | Path | Adapter, pipe: Any, weight_name: str | None) -> Adapter:
    if isinstance(source, Adapter):
        return source
    path = Path(source).expanduser()
    if not path.exists():
        if not _HUB_ID.fullmatch(str(source)) or path.suffix == ".safetensors":
            raise FormatError(
                f"{source}: there is no such file or folder, and it is no hub id like "
                "'organisation/model'; check the path"
            )
        path = _from_hub(str(source), weight_name)
    elif weight_name is not None:
        path = path / weight_name
    shapes = {
        f"{part}.{name}": tuple(weight.shape)
        for part, module in component_modules(pipe).items()
        for name, weight in module.named_parameters()
    }
    return formats.load(path, shapes=shapes)


def _from_hub(hub_id: str, weight_name: str | None) -> Path:
    # Without a name the files beside the card: what lies in folders may be a whole model.
    wanted = [weight_name] if weight_name else ["*.safetensors", "adapter_config.json"]
    others = None if weight_name else ["*/*"]
    try:
        folder = Path(snapshot_download(hub_id, allow_patterns=wanted, ignore_patterns=others))
    except Exception as error:
        # The hub's client raises what it likes; to the user all of it means this.
        raise FormatError(f"the adapter {hub_id!r} cannot be had from the hub: {error}") from error
    return folder / weight_name if weight_name else folder


def _free_name(name: str, taken: Collection[str]) -> str:
    names = (name if number == 1 else f"{name}-{number}" for number in count(1))
    return next(one for one in names if one not in taken)


def target_weights(
    module: nn.Module, targets: Sequence[str], blocks: Sequence[str] = ()
) -> dict[str, nn.Parameter]:
    """The weights of `module` in the groups `targets` (see `TARGETS`), by name.

    Where `blocks` are named, such as "mid_block" or "up_blocks.1", only what lies within these.
    Raises `SettingError` for an unknown group, and for a group or a block without such a weight.
    """
    named = dict(module.named_parameters())
    weights: dict[str, nn.Parameter] = {}
    for target in targets:
        found = {name: named[name] for name in chosen(named, target)}
        if not found:
            raise SettingError(
                f"this {type(module).__name__} has no weights of the group {target!r}"
            )
        weights |= found
    inside = within(weights, blocks) if blocks else weights
    return {name: weights[name] for name in weights if name in inside}


def _from_folder(folder: Path, dtype: torch.dtype) -> StableDiffusionXLPipeline:
    index = folder / "model_index.json"
    if not index.is_file():
        raise BaseModelError("the folder has no model_index.json, so it is no diffusers pipeline")
    kind = str(json.loads(index.read_text(encoding="utf-8")).get("_class_name"))
    if not kind.startswith("StableDiffusionXL"):
        raise BaseModelError(f"it is a {kind}; only Stable Diffusion XL is supported")
    unet = folder / "unet"
    halves = any(unet.glob("*.fp16*.safetensors"))
    wholes = any(".fp16" not in file.name for file in unet.glob("*.safetensors"))
    return StableDiffusionXLPipeline.from_pretrained(
        folder,
        dtype=dtype,
        use_safetensors=True,
        local_files_only=True,
        variant="fp16" if halves and not wholes else None,
    )


def _from_file(
    file: Path, dtype: torch.dtype, config: str | Path | None
) -> StableDiffusionXLPipeline:
    if file.suffix.lower() != ".safetensors":
        raise BaseModelError(
            f"a {file.suffix or 'nameless'} file may run any program when it is opened; get the "
            "checkpoint as .safetensors"
        )
    settings = {} if config is None else {"config": str(config)}
    return StableDiffusionXLPipeline.from_single_file(str(file), dtype=dtype, **settings)


def _usable(device: torch.device | str) -> torch.device:
    """The device of this name; raises `SettingError` naming those that this machine has."""
    mps = torch.backends.mps.is_available()
    counts = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(mps)}
    try:
        where = torch.device(device)
    except RuntimeError:
        where = None
    if where is None or (where.index or 0) >= counts.get(where.type, 0):
        here = ", ".join(name for name, count in counts.items() if count)
        raise SettingError(f"there is no device {str(device)!r} here; there are: {here}")
    return where


def _best_device() -> torch.device:
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def _fitting_dtype(device: torch.device) -> torch.dtype:
    if device.type == "cpu":
        return torch.float32
    if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.bfloat16
    return torch.float16
