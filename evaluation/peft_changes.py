"""What PEFT makes of LoRA files, as the exact change of the base's weights.

A DoRA's change depends on the base, and `add_weighted_adapter` merges LoRAs in ways of its own.
Both are asked of PEFT itself, on a live UNet that is given back bit for bit.
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from peft import LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors import safe_open
from torch import Tensor

from evaluation.errors import EvaluationError
from shira_diffusion import Adapter, SparseDelta
from shira_diffusion.delta import index_dtype
from shira_diffusion.formats import read_info

_MERGED = "merged"
_SETTINGS = ("r", "lora_alpha", "target_modules", "use_dora")


def weighted(
    unet: UNet2DConditionModel,
    files: Sequence[Path],
    strengths: Sequence[float],
    combination: str,
    density: float | None = None,
) -> Adapter:
    """Merge LoRAs by PEFT's `add_weighted_adapter`; `density` is what ties and dare keep.

    Raises `EvaluationError` for what PEFT refuses.
    """
    with _loaded(unet, files) as (model, names):
        try:
            model.base_model.add_weighted_adapter(
                names, list(strengths), _MERGED, combination_type=combination, density=density
            )
        except ValueError as error:
            raise EvaluationError(f"PEFT cannot merge by {combination}: {error}") from error
        changes = {
            name: layer.get_delta_weight(_MERGED).detach() for name, layer in _layers(model).items()
        }
    return _adapter(changes, files[0])


def dora_change(unet: UNet2DConditionModel, file: Path) -> Adapter:
    """Return the change that a DoRA makes to the base when it is merged."""
    with _loaded(unet, [file]) as (model, _):
        changes = {}
        for name, layer in _layers(model).items():
            weight = layer.get_base_layer().weight
            before = weight.detach().clone()
            layer.merge()
            changes[name] = weight.detach() - before
            with torch.no_grad():
                weight.copy_(before)
            layer.merged_adapters.clear()
    return _adapter(changes, file)


@contextmanager
def _loaded(
    unet: UNet2DConditionModel, files: Sequence[Path]
) -> Iterator[tuple[PeftModel, list[str]]]:
    """Have the files' adapters in the UNet for the block, as "0", "1" ..., none of them merged."""
    flags = {name: weight.requires_grad for name, weight in unet.named_parameters()}
    names = [str(place) for place in range(len(files))]
    model = get_peft_model(unet, _settings(files[0]), adapter_name=names[0])
    try:
        for name, file in zip(names, files, strict=True):
            if name != names[0]:
                model.add_adapter(name, _settings(file))
            outcome = set_peft_model_state_dict(model, _tensors(file), adapter_name=name)
            assert not outcome.unexpected_keys, outcome.unexpected_keys
        yield model, names
    finally:
        model.unload()
        if hasattr(unet, "peft_config"):
            del unet.peft_config
        for name, weight in unet.named_parameters():
            weight.requires_grad_(flags[name])


def _settings(file: Path) -> LoraConfig:
    with safe_open(file, framework="pt") as opened:
        stated = (opened.metadata() or {}).get(LORA_ADAPTER_METADATA_KEY)
    if stated is None:
        raise EvaluationError(f"{file} does not say rank and alpha as diffusers' LoRA files do.")
    settings = json.loads(stated)
    return LoraConfig(**{key: settings[f"unet.{key}"] for key in _SETTINGS})


def _tensors(file: Path) -> dict[str, Tensor]:
    with safe_open(file, framework="pt") as opened:
        names = list(opened.keys())
        return {
            f"base_model.model.{name.removeprefix('unet.')}": opened.get_tensor(name).float()
            for name in names
        }


def _layers(model: PeftModel) -> dict[str, LoraLayer]:
    """The LoRA layers by their path in the UNet."""
    return {
        name.removeprefix("base_model.model."): module
        for name, module in model.named_modules()
        if isinstance(module, LoraLayer)
    }


def _adapter(changes: Mapping[str, Tensor], file: Path) -> Adapter:
    """Make an adapter of dense changes (out, in) by layer, with the file's own information."""
    deltas = {}
    for name, change in changes.items():
        numel = change.numel()
        indices = torch.arange(numel, dtype=index_dtype(numel))
        values = change.float().flatten().cpu()
        deltas[f"unet.{name}.weight"] = SparseDelta(indices, values, tuple(change.shape))
    return Adapter(deltas, dataclasses.replace(read_info(file), name=_MERGED))
