"""What PEFT's `add_weighted_adapter` makes of LoRA files, as the exact change of the weights.

PEFT itself is asked, on a live UNet that is given back bit for bit.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from torch import Tensor

from evaluation.errors import EvaluationError
from shira_diffusion import Adapter, SparseDelta
from shira_diffusion.delta import index_dtype
from shira_diffusion.formats import read_info
from shira_diffusion.lowrank import LowRankDelta

Factors = dict[str, LowRankDelta]

_MERGED = "merged"


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


@contextmanager
def _loaded(
    unet: UNet2DConditionModel, files: Sequence[Path]
) -> Iterator[tuple[PeftModel, list[str]]]:
    """Have the files' adapters in the UNet for the block, as "0", "1" ..., none of them merged."""
    flags = {name: weight.requires_grad for name, weight in unet.named_parameters()}
    loras = {str(place): _factors(file) for place, file in enumerate(files)}
    first, *others = loras
    model = get_peft_model(unet, _settings(loras[first]), adapter_name=first)
    try:
        for name in others:
            model.add_adapter(name, _settings(loras[name]))
        for name, lora in loras.items():
            outcome = set_peft_model_state_dict(model, _tensors(lora), adapter_name=name)
            assert not outcome.unexpected_keys, outcome.unexpected_keys
        yield model, list(loras)
    finally:
        model.unload()
        if hasattr(unet, "peft_config"):
            del unet.peft_config
        for name, weight in unet.named_parameters():
            weight.requires_grad_(flags[name])


def _factors(file: Path) -> Factors:
    """Read a LoRA's factors by their layer's path in the UNet."""
    found: Factors = {}
    for name, delta in Adapter.load(file).deltas.items():
        component, _, path = name.removesuffix(".weight").partition(".")
        if component != "unet" or type(delta) is not LowRankDelta:
            raise EvaluationError(f"{file} is no LoRA of a UNet alone: PEFT cannot merge {name}.")
        found[path] = delta
    return found


def _settings(lora: Factors) -> LoraConfig:
    """Return PEFT's settings of a LoRA whose layers are all of one rank and scale, as ours are."""
    ((rank, scale),) = {(delta.rank, delta.scale) for delta in lora.values()}
    return LoraConfig(r=rank, lora_alpha=scale * rank, target_modules=list(lora))


def _tensors(lora: Factors) -> dict[str, Tensor]:
    return {
        f"base_model.model.{path}.lora_{factor}.weight": tensor.float()
        for path, delta in lora.items()
        for factor, tensor in _peft_factors(delta)
    }


def _peft_factors(delta: LowRankDelta) -> tuple[tuple[str, Tensor], ...]:
    """Return the factors as PEFT has them, those of a convolution with its kernel's sides."""
    sides = delta.shape[2:]
    down = delta.down.reshape(delta.rank, delta.shape[1], *sides)
    return ("A", down), ("B", delta.up.reshape(*delta.up.shape, *[1 for _ in sides]))


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
