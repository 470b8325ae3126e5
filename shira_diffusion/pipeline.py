"""Base models through diffusers; the only file here that knows diffusers.

Anything of Stable Diffusion XL's architecture (arXiv 2307.01952): the embedded base, a folder, a
checkpoint file, or a model on the hub.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import StableDiffusionXLPipeline
from diffusers.utils import logging as diffusers_logging
from torch import nn
from transformers.utils import logging as transformers_logging

from shira_diffusion.components import component_modules
from shira_diffusion.errors import BaseModelError, SettingError, nearest
from shira_diffusion.fingerprint import fingerprint

__all__ = ["TARGETS", "component_modules", "fingerprint", "hush", "load_base", "target_weights"]

# What can be trained, by group; "attention" is what the paper adapts. A UNet's names, then CLIP's.
TARGETS = {
    "attention": re.compile(
        r".*\.attn\d\.(to_q|to_k|to_v|to_out\.0)\.weight"
        r"|.*\.self_attn\.(q_proj|k_proj|v_proj|out_proj)\.weight"
    ),
    "feed_forward": re.compile(r".*\.ff\.net\.(0\.proj|2)\.weight|.*\.mlp\.fc[12]\.weight"),
    "projection": re.compile(r".*\.(proj_in|proj_out)\.weight"),
    "conv": re.compile(
        r".*\.resnets\.\d+\.(conv1|conv2|conv_shortcut)\.weight"
        r"|.*\.(downsamplers|upsamplers)\.\d+\.conv\.weight"
    ),
}
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


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
        return pipe.to(where)
    except Exception as error:
        # diffusers and the hub's client raise what they like; to the user all of it means this.
        raise BaseModelError(f"the base model {str(source)!r} cannot be loaded: {error}") from error


def hush() -> None:
    """Keep the loading bars and advice of diffusers and transformers off a program's terminal."""
    for logging in (diffusers_logging, transformers_logging):
        logging.disable_progress_bar()
        logging.set_verbosity_error()


def target_weights(module: nn.Module, targets: Sequence[str]) -> dict[str, nn.Parameter]:
    """The weights of `module` in the groups `targets` (see `TARGETS`), by name.

    Raises `SettingError` for an unknown group and for one without a weight in this module.
    """
    named = dict(module.named_parameters())
    chosen: dict[str, nn.Parameter] = {}
    for target in targets:
        pattern = TARGETS.get(target)
        if pattern is None:
            known = nearest(target, TARGETS, most=len(TARGETS))
            raise SettingError(f"there is no group of weights {target!r}; {known}")
        found = {name: weight for name, weight in named.items() if pattern.fullmatch(name)}
        if not found:
            raise SettingError(
                f"this {type(module).__name__} has no weights of the group {target!r}"
            )
        chosen |= found
    return chosen


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
