"""What a run finds out before it writes anything; the doctor asks the same questions."""

import dataclasses
import hashlib
import re
from collections.abc import Mapping
from typing import Any

from diffusers import StableDiffusionXLPipeline

from shira_diffusion.pipeline import target_weights
from training.config import Config
from training.data import Dataset
from training.errors import ConfigError, RunError
from training.machine import Machine


def with_words(config: Config, dataset: Dataset) -> Config:
    """Fill in the words that come from the captions where the settings have none."""
    return dataclasses.replace(
        config,
        trigger_words=config.trigger_words or dataset.words,
        sample_prompts=config.sample_prompts or dataset.prompts,
    )


def side_of(config: Config, pipe: StableDiffusionXLPipeline) -> int:
    """Return the pictures' side in pixels: the one asked for, or the base's own."""
    return config.resolution or pipe.unet.config.sample_size * pipe.vae_scale_factor


def check_fit(config: Config, pipe: StableDiffusionXLPipeline, side: int, machine: Machine) -> None:
    """Raise where settings, base and machine do not go together."""
    target_weights(pipe.unet, config.targets, config.blocks)
    if side % 8:
        raise ConfigError(f"resolution = {side} is not a multiple of 8.")
    if config.batch < machine.world:
        raise ConfigError(
            f"batch = {config.batch} leaves some of the {machine.world} processes without work. "
            f"Set batch={machine.world} or more."
        )


def check_texts(config: Config, pipe: StableDiffusionXLPipeline, dataset: Dataset) -> None:
    """Raise where the captions and the words that the settings name do not go together."""
    word = config.new_token
    if not word:
        return
    known = pipe.tokenizer.get_vocab().keys() | pipe.tokenizer_2.get_vocab().keys()
    # CLIP's vocabulary marks what ends a word.
    if known & {word, f"{word.lower()}</w>"}:
        raise ConfigError(f"new_token = {word}: the base knows this word. Choose another one.")
    alone = re.compile(rf"(?<!\w){re.escape(word)}(?!\w)")
    if not any(alone.search(caption) for caption in dataset.captions):
        raise ConfigError(
            f"new_token = {word}: no caption has this word, so nothing would be learned of it. "
            f"Write it where it belongs, as in 'a fox, {word} style'."
        )


def origin(base: str, dataset: Dataset) -> dict[str, str]:
    """Return what a checkpoint is bound to besides its settings: `base` is a fingerprint."""
    text = "\n".join(image.content for image in dataset.images)
    return {"base": base, "data": hashlib.sha256(text.encode()).hexdigest()}


def check_origin(stored: Mapping[str, Any], found: Mapping[str, str], config: Config) -> None:
    """Raise where the base or the data are not those that the checkpoint `stored` was made of."""
    places = {"base": config.base, "data": ", ".join(config.folders)}
    for what, value in found.items():
        if stored[what] != value:
            raise RunError(
                f"The {what} ({places[what]}) has changed since this run was "
                "started. Restore it, or start a new run with name= or run=."
            )
