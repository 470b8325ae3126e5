"""Pictures that a pipeline draws during and for training: samples and class images."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import StableDiffusionXLPipeline
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from training.encode import move_encoders
from training.images import Size
from training.machine import Machine


@dataclass(frozen=True)
class Sampler:
    """Draws with the pipeline as it is now, adapter and all."""

    pipe: StableDiffusionXLPipeline
    machine: Machine
    size: Size
    steps: int
    guidance: float

    def draw(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[Image.Image]:
        """Return one picture a prompt; each depends on its own seed, not on its neighbours."""
        with torch.no_grad(), self.machine.autocast():
            images: list[Image.Image] = self.pipe(
                list(prompts),
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
def encoders_at_hand(pipe: StableDiffusionXLPipeline, machine: Machine) -> Iterator[None]:
    """Have VAE and text encoders on the device for the block, off it afterwards."""
    move_encoders(pipe, machine.device)
    try:
        yield
    finally:
        if machine.device.type != "cpu":
            move_encoders(pipe, "cpu")
            torch.get_device_module(machine.device).empty_cache()
