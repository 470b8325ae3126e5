"""LoRA and its kin through PEFT, written as diffusers and its users expect it."""

from collections.abc import Mapping
from typing import Any

import torch
from diffusers.training_utils import cast_training_params
from diffusers.utils.peft_utils import recurse_remove_peft_layers
from peft import (
    LoraConfig,
    get_peft_model_state_dict,
    inject_adapter_in_model,
    set_peft_model_state_dict,
)
from torch import Tensor, nn

from training.methods.content import LowRank

_ADAPTER = "default"


class Lora:
    """Trains what PEFT's settings say beside a module's weights.

    That is B @ A * alpha / rank (https://arxiv.org/abs/2106.09685), with `use_dora` also the
    magnitude of each row of the weight, of which the rest is the direction
    (https://arxiv.org/abs/2402.09353).
    """

    def __init__(self, module: nn.Module, settings: LoraConfig, *, seed: int) -> None:
        self._module = module
        self._settings = settings
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            inject_adapter_in_model(settings, module, _ADAPTER)
        cast_training_params(module, torch.float32)

    def parameters(self) -> list[nn.Parameter]:
        """Return all factors and magnitudes."""
        return [parameter for parameter in self._module.parameters() if parameter.requires_grad]

    def gather(self) -> None:
        """Do nothing: the gradients are there."""

    def write(self) -> None:
        """Do nothing: the module reads the factors themselves."""

    def state(self) -> dict[str, Tensor]:
        """Return factors and magnitudes under PEFT's names."""
        state = get_peft_model_state_dict(self._module, adapter_name=_ADAPTER)
        return {name: tensor.detach().cpu().clone() for name, tensor in state.items()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take factors and magnitudes."""
        outcome = set_peft_model_state_dict(self._module, dict(state), adapter_name=_ADAPTER)
        assert not outcome.unexpected_keys, outcome.unexpected_keys

    def content(self) -> LowRank:
        """Return factors and magnitudes."""
        return LowRank(self.state(), self._settings)

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
        recurse_remove_peft_layers(self._module)
        del self._module.peft_config
