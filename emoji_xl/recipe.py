"""The stages of making the base, each bounded by a clock and writing what it has as it goes."""

import json
import logging
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from diffusers import AutoencoderKL, StableDiffusionXLPipeline
from transformers import CLIPTokenizer

from emoji_xl.architecture import FULL, TOY, Size, build_pipeline, save_pipeline
from emoji_xl.artwork import Picture, read_manifest
from emoji_xl.captions import WITH_STYLE, WITHOUT_STYLE, fill
from emoji_xl.clock import Clock
from emoji_xl.concepts import TRAIN_STYLES
from emoji_xl.data import Artwork, on_white
from emoji_xl.sheet import pair_sheet, spread
from emoji_xl.train_base import BaseStep, Batches, Denoiser, train_base
from emoji_xl.train_vae import normalise_latents, psnr, train_vae
from emoji_xl.vocabulary import learn_tokenizer

log = logging.getLogger(__name__)

MANIFEST = Path(__file__).with_name("manifest.json")
LOG_EVERY = 50
SHEET_PAIRS = 48


@dataclass(frozen=True)
class Recipe:
    """Where a run reads and writes, how large its model is, and how it computes."""

    pack: Path
    run: Path
    minutes: float
    batch: int
    size: Size = FULL
    save_minutes: float = 2.0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    compiled: bool = False

    @property
    def vae_folder(self) -> Path:
        """Where the first stage leaves the autoencoder."""
        return self.run / "vae"

    @property
    def model_folder(self) -> Path:
        """Where the second stage leaves the whole pipeline."""
        return self.run / "model"

    def record(self, **event: object) -> None:
        """Append one event to the run's log."""
        line = json.dumps({"time": round(time.time(), 1), **event})
        with (self.run / "events.jsonl").open("a") as file:
            file.write(line + "\n")
        log.info(line)


def size_named(name: str) -> Size:
    """Size of the model by its name: full or toy."""
    return {"full": FULL, "toy": TOY}[name]


def train_pictures() -> list[Picture]:
    """Pictures that the base may see."""
    return [p for p in read_manifest(MANIFEST) if p.split == "train"]


def base_tokenizer(size: Size) -> CLIPTokenizer:
    """Learn the base's vocabulary: the words of all captions, held-out names among them."""
    concepts = sorted({p.concept for p in read_manifest(MANIFEST)})
    texts = [
        fill(template, style, concept)
        for concept in concepts
        for style in TRAIN_STYLES
        for template in WITH_STYLE + WITHOUT_STYLE
    ]
    return learn_tokenizer(texts, prompt_tokens=size.prompt_tokens)


def replace_folder(folder: Path, write: Callable[[Path], object]) -> None:
    """Write a folder beside its old version, then swap, so that a whole one is always there."""
    fresh, old = folder.with_name(folder.name + ".new"), folder.with_name(folder.name + ".old")
    shutil.rmtree(fresh, ignore_errors=True)
    write(fresh)
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    fresh.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def make_vae(recipe: Recipe) -> AutoencoderKL:
    """Stage one: train the autoencoder, normalise its latents, write it."""
    recipe.run.mkdir(parents=True, exist_ok=True)
    artwork = Artwork.load(recipe.pack, train_pictures(), recipe.device, recipe.size.image_size)
    clock = Clock(recipe.minutes)
    for done in train_vae(
        artwork, recipe.size, clock=clock, batch=recipe.batch, compiled=recipe.compiled
    ):
        if done.step % LOG_EVERY == 0:
            recipe.record(stage="vae", step=done.step, loss=float(done.loss), s=clock.seconds)
    vae = done.vae
    normalise_latents(vae, artwork)
    quality = psnr(vae, on_white(artwork.rgba))
    recipe.record(stage="vae", finished=True, steps=done.step + 1, psnr=round(quality, 2))
    replace_folder(recipe.vae_folder, vae.save_pretrained)
    return vae


def make_base(recipe: Recipe, *, init: Path | None) -> StableDiffusionXLPipeline:
    """Stage two: train UNet and text encoders, from scratch or from the pipeline at `init`."""
    recipe.run.mkdir(parents=True, exist_ok=True)
    pictures = train_pictures()
    vae = AutoencoderKL.from_pretrained(recipe.vae_folder).to(recipe.device)
    if init is None:
        pipe = build_pipeline(recipe.size, base_tokenizer(recipe.size))
    else:
        pipe = StableDiffusionXLPipeline.from_pretrained(init, dtype=torch.float32)
    pipe.vae = vae
    pipe.to(recipe.device)
    artwork = Artwork.load(recipe.pack, pictures, recipe.device, recipe.size.image_size)
    batches = Batches(artwork, vae, pipe)
    clock = Clock(recipe.minutes)
    saved = 0.0
    for done in train_base(
        pipe, batches, clock=clock, batch=recipe.batch, compiled=recipe.compiled
    ):
        if done.step % LOG_EVERY == 0:
            recipe.record(stage="unet", step=done.step, loss=float(done.loss), s=clock.seconds)
        if clock.seconds - saved > 60 * recipe.save_minutes:
            saved = clock.seconds
            write_base(recipe, pipe, done)
    recipe.record(stage="unet", finished=True, steps=done.step + 1, s=clock.seconds)
    return write_base(recipe, pipe, done)


def write_base(
    recipe: Recipe, pipe: StableDiffusionXLPipeline, done: BaseStep
) -> StableDiffusionXLPipeline:
    """Write the averaged weights as a pipeline, with a sample sheet."""
    averaged = averaged_pipeline(pipe, done.denoiser)
    replace_folder(recipe.model_folder, lambda folder: save_pipeline(averaged, folder))
    sheet = pair_sheet(averaged, spread(train_pictures(), SHEET_PAIRS))
    sheets = recipe.run / "sheets"
    sheets.mkdir(exist_ok=True)
    sheet.save(sheets / f"{done.step:06d}.png")
    return averaged


def averaged_pipeline(
    pipe: StableDiffusionXLPipeline, average: Denoiser
) -> StableDiffusionXLPipeline:
    """Return `pipe` with the averaged UNet and text encoders in place of those in training."""
    parts = pipe.components | {
        "unet": average.unet,
        "text_encoder": average.text_encoder,
        "text_encoder_2": average.text_encoder_2,
    }
    averaged = StableDiffusionXLPipeline(
        **parts, force_zeros_for_empty_prompt=True, add_watermarker=False
    )
    averaged.set_progress_bar_config(disable=True)
    return averaged
