"""Batches and settings of runs on the toy base that last a few steps."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import StableDiffusionXLPipeline
from torch import Tensor, nn

from training.batches import Batches
from training.config import Config
from training.encode import Example
from training.machine import Machine

CPU = Machine(torch.device("cpu"), torch.float32)
STEPS = 4


def make_batches(
    pipe: StableDiffusionXLPipeline, classes: int = 2, captions: Sequence[str] = ()
) -> Batches:
    generator = torch.Generator().manual_seed(7)

    def example(caption: str) -> Example:
        with torch.no_grad():
            embeds, _, pooled, _ = pipe.encode_prompt(caption, do_classifier_free_guidance=False)
        latents = torch.randn(4, 8, 8, generator=generator)
        ids = torch.tensor([32.0, 32, 0, 0, 32, 32])
        return Example(latents, embeds[0], pooled[0], ids, caption=caption)

    return Batches(
        [example(text) for text in captions or [f"a castle {n}" for n in range(3)]],
        [example(f"a red apple {number}") for number in range(classes)],
        batch=2,
        class_batch=1,
        class_weight=0.7,
        train_timesteps=1000,
        seed=0,
    )


def no_gradients(_: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    raise AssertionError("this mask needs no gradients")


def settings(**changes: Any) -> Config:
    defaults = {"data": "x", "name": "x", "steps": STEPS, "lr": 1e-2, "clip": 0.5}
    return Config(**{**defaults, **changes})
