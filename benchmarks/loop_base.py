"""What the loop benchmark trains on: a checkpoint of SDXL's own size and random pictures."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    EulerDiscreteScheduler,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from PIL import Image
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

from benchmarks.train_unet import SDXL

EMBEDDED = Path(__file__).parents[1] / "models" / "emoji-xl"
_VOCABULARY = 49408
_TOKENS = 77


def write_base(folder: Path, device: torch.device) -> None:
    """Write a pipeline of SDXL's architecture (https://arxiv.org/abs/2307.01952), fp16, 7 GB.

    Its weights are random and its tokenizers the embedded base's: nothing here has to be learned.
    """
    if (folder / "model_index.json").is_file():
        return
    torch.manual_seed(0)
    tokenizer = CLIPTokenizer.from_pretrained(EMBEDDED / "tokenizer", model_max_length=_TOKENS)
    with torch.device(device):
        parts: dict[str, nn.Module] = {
            "unet": UNet2DConditionModel(**SDXL),
            "vae": _vae(),
            "text_encoder": CLIPTextModel(_text(tokenizer, 768, 12, 12, "quick_gelu")),
            "text_encoder_2": CLIPTextModelWithProjection(_text(tokenizer, 1280, 32, 20, "gelu")),
        }
    halves = {name: part.half() for name, part in parts.items()}
    pipe = StableDiffusionXLPipeline(
        **halves, tokenizer=tokenizer, tokenizer_2=tokenizer, scheduler=_scheduler()
    )
    pipe.save_pretrained(folder)


def write_images(folder: Path, side: int, count: int = 4) -> None:
    """Write pictures of random colours and no captions: one prompt is for all."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(0)
    for number in range(count):
        blocks = torch.randint(256, (8, 8, 3), generator=generator, dtype=torch.uint8)
        picture = Image.fromarray(blocks.numpy()).resize((side, side), Image.Resampling.BICUBIC)
        picture.save(folder / f"{number}.png")


def _vae() -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        sample_size=1024,
        scaling_factor=0.13025,
        force_upcast=True,
    )


def _text(
    tokenizer: CLIPTokenizer, width: int, layers: int, heads: int, activation: str
) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=_VOCABULARY,
        hidden_size=width,
        intermediate_size=4 * width,
        projection_dim=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        hidden_act=activation,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def _scheduler() -> EulerDiscreteScheduler:
    return EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        steps_offset=1,
        timestep_spacing="leading",
    )
