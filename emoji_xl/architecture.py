"""SDXL's architecture at emoji size: every component of the pipeline, with fixed-seed weights.

The layout follows SDXL (https://arxiv.org/abs/2307.01952): a UNet whose first level has no
attention and whose deepest level has the most, two CLIP text encoders joined along the channel
axis, the second one's pooled output and six size numbers as extra conditioning.
"""

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    EulerDiscreteScheduler,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

TIME_IDS = 6
TIME_EMBED_DIM = 32


@dataclass(frozen=True)
class Size:
    """Widths and depths of a model; `image_size` in pixels, `prompt_tokens` with start and end."""

    image_size: int = 128
    prompt_tokens: int = 32
    unet_channels: tuple[int, int, int] = (64, 96, 128)
    unet_heads: tuple[int, int, int] = (2, 3, 4)
    unet_transformer_layers: tuple[int, int, int] = (1, 2, 5)
    unet_norm_groups: int = 32
    vae_channels: tuple[int, int, int] = (32, 64, 96)
    vae_norm_groups: int = 16
    text_width: int = 128
    text_2_width: int = 192
    text_layers: int = 3


FULL = Size()
TOY = Size(
    image_size=32,
    unet_channels=(8, 16, 16),
    unet_heads=(1, 2, 2),
    unet_transformer_layers=(1, 1, 2),
    unet_norm_groups=4,
    vae_channels=(8, 8, 8),
    vae_norm_groups=4,
    text_width=16,
    text_2_width=16,
    text_layers=1,
)


def build_vae(size: Size) -> AutoencoderKL:
    """Build the autoencoder: images (N, 3, H, W) in [-1, 1] to latents (N, 4, H/4, W/4)."""
    levels = len(size.vae_channels)
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        block_out_channels=size.vae_channels,
        layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        norm_num_groups=size.vae_norm_groups,
        sample_size=size.image_size,
        scaling_factor=1.0,
        mid_block_add_attention=False,
        force_upcast=False,
    )


def build_unet(size: Size) -> UNet2DConditionModel:
    """Build the noise predictor over latents (N, 4, image_size / 4, image_size / 4)."""
    return UNet2DConditionModel(
        sample_size=size.image_size // 4,
        in_channels=4,
        out_channels=4,
        block_out_channels=size.unet_channels,
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=size.unet_transformer_layers,
        # diffusers' name for the number of heads of each level; SDXL's config uses it so too.
        attention_head_dim=size.unet_heads,
        cross_attention_dim=size.text_width + size.text_2_width,
        use_linear_projection=True,
        norm_num_groups=size.unet_norm_groups,
        addition_embed_type="text_time",
        addition_time_embed_dim=TIME_EMBED_DIM,
        projection_class_embeddings_input_dim=size.text_2_width + TIME_IDS * TIME_EMBED_DIM,
    )


def build_text_encoders(
    size: Size, tokenizer: CLIPTokenizer
) -> tuple[CLIPTextModel, CLIPTextModelWithProjection]:
    """Build both CLIP text encoders for the vocabulary of `tokenizer`."""

    def config(width: int) -> CLIPTextConfig:
        return CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=4 * width,
            projection_dim=width,
            num_hidden_layers=size.text_layers,
            num_attention_heads=max(1, width // 32),
            max_position_embeddings=size.prompt_tokens,
            hidden_act="gelu",
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )

    return (
        CLIPTextModel(config(size.text_width)),
        CLIPTextModelWithProjection(config(size.text_2_width)),
    )


def build_scheduler() -> EulerDiscreteScheduler:
    """Build the sampler: v-prediction with zero terminal SNR (https://arxiv.org/abs/2305.08891)."""
    return EulerDiscreteScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
    )


def build_pipeline(
    size: Size, tokenizer: CLIPTokenizer, *, seed: int = 0
) -> StableDiffusionXLPipeline:
    """Build the whole untrained pipeline; the same seed gives the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        text_encoder, text_encoder_2 = build_text_encoders(size, tokenizer)
        return assemble(
            {
                "vae": build_vae(size).eval(),
                "text_encoder": text_encoder.eval(),
                "text_encoder_2": text_encoder_2.eval(),
                "tokenizer": tokenizer,
                "tokenizer_2": tokenizer,
                "unet": build_unet(size).eval(),
                "scheduler": build_scheduler(),
            }
        )


def assemble(components: dict[str, Any]) -> StableDiffusionXLPipeline:
    """Make a pipeline of `components` with the options that the base ships with."""
    return StableDiffusionXLPipeline(
        **components, force_zeros_for_empty_prompt=True, add_watermarker=False
    )


def save_pipeline(pipe: StableDiffusionXLPipeline, folder: Path) -> None:
    """Write `pipe` to `folder` in diffusers' format with fp16 weights; `pipe` stays as it is."""
    halved = {
        name: copy.deepcopy(part).half() if isinstance(part, torch.nn.Module) else part
        for name, part in pipe.components.items()
    }
    assemble(halved).save_pretrained(folder)
    # transformers loads in the dtype that the config names, diffusers in fp32: without this a plain
    # from_pretrained(folder) would mix fp16 text encoders with an fp32 UNet.
    for encoder in ("text_encoder", "text_encoder_2"):
        path = folder / encoder / "config.json"
        config = json.loads(path.read_text())
        path.write_text(json.dumps(config | {"dtype": "float32"}, indent=2) + "\n")
