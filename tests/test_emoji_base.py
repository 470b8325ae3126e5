"""The base that ships, in plain diffusers."""

from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionXLPipeline

BASE = Path(__file__).parent.parent / "models" / "emoji-xl"


def test_plain_diffusers_loads_and_draws_it() -> None:
    pipe = StableDiffusionXLPipeline.from_pretrained(BASE)
    pipe.set_progress_bar_config(disable=True)
    assert {pipe.unet.dtype, pipe.text_encoder.dtype, pipe.vae.dtype} == {torch.float32}
    generator = torch.Generator().manual_seed(0)
    image = pipe(
        "tomato, flat style", num_inference_steps=8, guidance_scale=4.0, generator=generator
    ).images[0]
    assert image.size == (128, 128)
    red, green, blue = np.asarray(image)[48:80, 48:80].reshape(-1, 3).mean(axis=0)
    assert red > 150
    assert red > 1.5 * max(green, blue)


def test_attention_holds_about_the_share_that_sdxl_has() -> None:
    unet = StableDiffusionXLPipeline.from_pretrained(BASE).unet
    attention = sum(
        weight.numel()
        for name, weight in unet.named_parameters()
        if name.endswith(("to_q.weight", "to_k.weight", "to_v.weight", "to_out.0.weight"))
    )
    assert 0.3 < attention / unet.num_parameters() < 0.4


def test_it_stays_small_on_disk() -> None:
    weights = sum(file.stat().st_size for file in BASE.rglob("*.safetensors"))
    assert weights < 40e6
