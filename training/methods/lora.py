"""LoRA and its kin through PEFT, written as diffusers and its users expect it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.training_utils import cast_training_params
from peft import LoraConfig, get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor, nn

from shira_diffusion import AdapterInfo
from training.methods.lora_file import write_lora

_ADAPTER = "default"


class Lora:
    """Trains what PEFT's settings say beside the UNet's weights.

    That is B @ A * alpha / rank (https://arxiv.org/abs/2106.09685), with `use_dora` also the
    magnitude of each row of the weight, of which the rest is the direction
    (https://arxiv.org/abs/2402.09353).
    """

    def __init__(self, unet: UNet2DConditionModel, settings: LoraConfig, *, seed: int) -> None:
        self._unet = unet
        self._settings = settings
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            unet.add_adapter(settings, adapter_name=_ADAPTER)
        cast_training_params(unet, torch.float32)

    def parameters(self) -> list[nn.Parameter]:
        """Return all factors and magnitudes."""
        return [parameter for parameter in self._unet.parameters() if parameter.requires_grad]

    def gather(self) -> None:
        """Do nothing: the gradients are there."""

    def write(self) -> None:
        """Do nothing: the UNet reads the factors themselves."""

    def state(self) -> dict[str, Tensor]:
        """Return factors and magnitudes under PEFT's names."""
        state = get_peft_model_state_dict(self._unet, adapter_name=_ADAPTER)
        return {name: tensor.detach().cpu().clone() for name, tensor in state.items()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take factors and magnitudes."""
        outcome = set_peft_model_state_dict(self._unet, dict(state), adapter_name=_ADAPTER)
        assert not outcome.unexpected_keys, outcome.unexpected_keys

    def save(self, path: Path, info: AdapterInfo) -> None:
        """Write the file that `pipe.load_lora_weights` reads."""
        write_lora(path, self.state(), self._settings, info)

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
