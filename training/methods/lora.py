"""LoRA through PEFT, written as diffusers and its users expect it."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from diffusers.training_utils import cast_training_params
from peft import LoraConfig, get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor, nn

from shira_diffusion import AdapterInfo, masks
from shira_diffusion.formats import container, metadata

_ADAPTER = "default"


class Lora:
    """Trains B @ A * alpha / rank beside the named weights of the UNet."""

    def __init__(
        self,
        unet: UNet2DConditionModel,
        weights: Sequence[str],
        rank: int,
        alpha: float,
        *,
        seed: int,
    ) -> None:
        self._unet = unet
        modules = [name.removesuffix(".weight") for name in weights]
        self._settings = LoraConfig(
            r=rank, lora_alpha=alpha, target_modules=modules, init_lora_weights=True
        )
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            unet.add_adapter(self._settings, adapter_name=_ADAPTER)
        cast_training_params(unet, torch.float32)

    def parameters(self) -> list[nn.Parameter]:
        """Return all A and B."""
        return [parameter for parameter in self._unet.parameters() if parameter.requires_grad]

    def write(self) -> None:
        """Do nothing: the UNet reads A and B themselves."""

    def state(self) -> dict[str, Tensor]:
        """Return A and B under PEFT's names."""
        state = get_peft_model_state_dict(self._unet, adapter_name=_ADAPTER)
        return {name: tensor.detach().cpu().clone() for name, tensor in state.items()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take A and B."""
        outcome = set_peft_model_state_dict(self._unet, dict(state), adapter_name=_ADAPTER)
        assert not outcome.unexpected_keys, outcome.unexpected_keys

    def save(self, path: Path, info: AdapterInfo) -> None:
        """Write the file that `pipe.load_lora_weights` reads."""
        tensors = {
            f"unet.{name}": tensor.to(torch.float16).contiguous()
            for name, tensor in self.state().items()
        }
        container.write(path, tensors, metadata.encode(info) | self._diffusers_metadata())

    def _diffusers_metadata(self) -> dict[str, str]:
        """Return rank, alpha and targets in the words that diffusers looks for."""
        settings = {
            f"unet.{key}": sorted(value) if isinstance(value, set) else value
            for key, value in self._settings.to_dict().items()
        }
        return {"format": "pt", LORA_ADAPTER_METADATA_KEY: json.dumps(settings, sort_keys=True)}

    def facts(self) -> dict[str, str]:
        """Return rank and alpha, and how many values they came to."""
        count = sum(value.numel() for value in self.parameters())
        return {
            "rank": str(self._settings.r),
            "alpha": f"{self._settings.lora_alpha:g}",
            "trained values": f"{count:,}",
        }

    def close(self) -> None:
        """Take the LoRA layers out again."""
        self._unet.unload_lora()


def matching_rank(weights: Iterable[Tensor], density: float) -> int:
    """Return the rank whose parameter count is nearest to a sparse adapter's of `density`."""
    weights = list(weights)
    sparse = sum(masks.count(weight.numel(), density) for weight in weights)
    per_rank = sum(weight.shape[0] + weight.numel() // weight.shape[0] for weight in weights)
    return max(1, round(sparse / per_rank))
