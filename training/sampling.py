"""Pictures that a pipeline draws during and for training: samples and class images."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL, StableDiffusionXLPipeline
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from training.images import Size
from training.lodging import lent, text_encoders
from training.machine import Machine

TILE = 512
"""The side in pixels of the pieces that pictures are decoded in where memory is short."""


@dataclass(frozen=True)
class Sampler:
    """Draws with the pipeline as it is now, adapter and all; `tiled` saves the VAE memory."""

    pipe: StableDiffusionXLPipeline
    machine: Machine
    size: Size
    steps: int
    guidance: float
    tiled: bool = False

    def draw(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[Image.Image]:
        """Return one picture a prompt; each depends on its own seed, not on its neighbours."""
        pipe, machine = self.pipe, self.machine
        # Compiled blocks would be compiled anew for the few pictures, without gradients.
        eager = torch.compiler.set_stance("force_eager")
        with torch.no_grad(), machine.autocast(), eager:
            with lent(machine, *text_encoders(pipe)):
                embeds, negative, pooled, negative_pooled = pipe.encode_prompt(
                    list(prompts),
                    device=machine.device,
                    do_classifier_free_guidance=self.guidance > 1,
                )
            with lent(machine, pipe.vae), _tiles(pipe.vae) if self.tiled else nullcontext():
                images: list[Image.Image] = pipe(
                    prompt_embeds=embeds,
                    negative_prompt_embeds=negative,
                    pooled_prompt_embeds=pooled,
                    negative_pooled_prompt_embeds=negative_pooled,
                    generator=[torch.Generator().manual_seed(seed) for seed in seeds],
                    num_inference_steps=self.steps,
                    guidance_scale=self.guidance,
                    height=self.size[0],
                    width=self.size[1],
                ).images
        return images

    def save(self, picture: Image.Image, path: Path, *, prompt: str, seed: int) -> None:
        """Write a PNG that says how it was made."""
        made = {"prompt": prompt, "seed": seed, "steps": self.steps, "guidance": self.guidance}
        text = PngInfo()
        text.add_itxt("parameters", json.dumps(made))
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path, pnginfo=text)


@contextmanager
def _tiles(vae: AutoencoderKL) -> Iterator[None]:
    """Decode the block's pictures in pieces that are blended where they meet.

    SDXL's own tiles are as large as its pictures.
    """
    former = vae.tile_sample_min_size, vae.tile_latent_min_size
    scale = 2 ** (len(vae.config.block_out_channels) - 1)
    vae.tile_sample_min_size, vae.tile_latent_min_size = TILE, TILE // scale
    vae.enable_tiling()
    try:
        yield
    finally:
        vae.disable_tiling()
        vae.tile_sample_min_size, vae.tile_latent_min_size = former
