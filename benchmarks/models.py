"""What is switched and run: a UNet in use, SDXL's attention matrices, and random adapters."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from benchmarks.train_unet import SDXL, sdxl_unet
from shira_diffusion import Adapter, AdapterInfo, SparseDelta, masks
from shira_diffusion.pipeline import target_weights

DENSITY = 0.01
LORA_TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]
# SDXL's attention: how many matrices there are of each shape (out, in).
_MATRICES = {(640, 640): 60, (640, 2048): 20, (1280, 1280): 360, (1280, 2048): 120}


def unet_in_use(device: torch.device) -> UNet2DConditionModel:
    """The benchmarks' UNet, ready to draw."""
    unet: UNet2DConditionModel = sdxl_unet(device).eval().requires_grad_(False)
    return unet


def forward_inputs(unet: UNet2DConditionModel, batch: int = 2) -> dict[str, object]:
    """What a pipeline gives the UNet in each step, with guidance: a batch of two."""
    generator = torch.Generator().manual_seed(0)
    config, side = unet.config, unet.config.sample_size
    pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim

    def normal(*shape: int) -> Tensor:
        return torch.randn(batch, *shape, generator=generator).to(unet.device, unet.dtype)

    return {
        "sample": normal(config.in_channels, side, side),
        "timestep": torch.tensor(500, device=unet.device),
        "encoder_hidden_states": normal(77, config.cross_attention_dim),
        "added_cond_kwargs": {"text_embeds": normal(pooled), "time_ids": normal(6)},
        "return_dict": False,
    }


class Matrices(nn.Module):
    """SDXL's 560 attention matrices as linear layers, random, in fp32 on the CPU (3.8 GB)."""

    def __init__(self) -> None:
        super().__init__()
        shapes = [shape for shape, many in _MATRICES.items() for _ in range(many)]
        self.layers = nn.ModuleList(
            nn.Linear(columns, rows, bias=False).requires_grad_(False) for rows, columns in shapes
        )


def sdxl_attention() -> dict[str, tuple[int, ...]]:
    """The names and shapes of SDXL's 560 attention weights."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(**SDXL)
    return {name: tuple(weight.shape) for name, weight in attention(unet).items()}


def sparse_adapter(weights: Mapping[str, Tensor], seed: int) -> Adapter:
    """1 % of the entries of each weight, at random, small fp16 changes."""
    deltas = {}
    for name, weight in weights.items():
        generator = masks.layer_generator(seed, name)
        indices = masks.rand(weight.shape, masks.count(weight.numel(), DENSITY), generator)
        values = torch.randn(indices.numel(), generator=generator) * 0.01
        deltas[name] = SparseDelta(indices, values.half(), tuple(weight.shape))
    return Adapter(deltas, AdapterInfo(f"adapter {seed}"))


def attention(unet: UNet2DConditionModel) -> dict[str, nn.Parameter]:
    """The weights that adapters change: 560 matrices in SDXL's own size."""
    return target_weights(unet, ["attention"])


def lora_config(rank: int, targets: list[str] | str = LORA_TARGETS) -> LoraConfig:
    """A LoRA of PEFT; factors are random, since PEFT's own start has no effect."""
    return LoraConfig(r=rank, lora_alpha=rank, target_modules=targets, init_lora_weights="gaussian")


def fill_factors(module: nn.Module, names: list[str]) -> None:
    """Give the LoRAs `names` an effect, and the dtype of the weights that they go into."""
    generator = torch.Generator().manual_seed(0)
    for layer in module.modules():
        if isinstance(layer, LoraLayer):
            for name in names:
                for factor in (layer.lora_A[name], layer.lora_B[name]):
                    drawn = torch.randn(factor.weight.shape, generator=generator) * 0.01
                    factor.weight.data = drawn.to(layer.weight.device, layer.weight.dtype)
                    factor.weight.requires_grad_(False)
