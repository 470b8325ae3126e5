"""SDXL's UNet with random weights and the inputs of a training step; on a CPU a small one."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

_ARCHITECTURE: dict[str, Any] = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
}
SDXL = _ARCHITECTURE | {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "layers_per_block": 2,
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
SMALL = _ARCHITECTURE | {
    "sample_size": 32,
    "block_out_channels": (64, 128, 256),
    "layers_per_block": 1,
    "transformer_layers_per_block": (1, 1, 2),
    "attention_head_dim": (2, 4, 8),
    "cross_attention_dim": 256,
    "addition_time_embed_dim": 32,
    "projection_class_embeddings_input_dim": 448,
}
_TOKENS = 77
_TIME_IDS = 6


def sdxl_unet(device: torch.device) -> UNet2DConditionModel:
    """SDXL's own size in bf16 on CUDA, the small one in fp32 elsewhere; always the same weights."""
    config, dtype = (SDXL, torch.bfloat16) if device.type == "cuda" else (SMALL, torch.float32)
    torch.manual_seed(0)
    with torch.device(device):
        return UNet2DConditionModel(**config).to(dtype).train()


def sdxl_inputs(unet: UNet2DConditionModel) -> dict[str, Tensor]:
    """One picture's latents, noise, timestep and conditions, as `noise_loss` takes them."""
    generator = torch.Generator().manual_seed(0)
    config, side = unet.config, unet.config.sample_size
    pooled = config.projection_class_embeddings_input_dim
    pooled -= _TIME_IDS * config.addition_time_embed_dim

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(unet.device, unet.dtype)

    return {
        "latents": normal(1, config.in_channels, side, side),
        "noise": normal(1, config.in_channels, side, side),
        "timesteps": torch.tensor([500], device=unet.device),
        "prompt_embeds": normal(1, _TOKENS, config.cross_attention_dim),
        "pooled": normal(1, pooled),
        "time_ids": torch.tensor([[1024, 1024, 0, 0, 1024, 1024]]).to(unet.device, unet.dtype),
    }
