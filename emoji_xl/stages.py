"""The stages: autoencoder, base, judges. Each is bounded by a clock and writes as it goes."""

import dataclasses
import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, StableDiffusionXLPipeline
from transformers import CLIPTokenizer

from emoji_xl.architecture import Size, assemble, build_pipeline, save_pipeline
from emoji_xl.artwork import Picture, read_manifest
from emoji_xl.captions import WITH_STYLE, WITHOUT_CONCEPT, WITHOUT_STYLE, fill
from emoji_xl.concepts import TRAIN_STYLES
from emoji_xl.data import Artwork, on_white
from emoji_xl.judge import Judge
from emoji_xl.marking import calibrate, missed
from emoji_xl.modifiers import MODIFIERS
from emoji_xl.recipe import Recipe, replace_folder
from emoji_xl.sheet import pair_sheet, spread
from emoji_xl.train_base import Batches, Denoiser, base_updater, scheduler_alphas, train_base
from emoji_xl.train_judge import (
    Lessons,
    finish_judge,
    is_held_out,
    judge_updater,
    labels_of,
    train_judge,
)
from emoji_xl.train_vae import normalise_latents, psnr, train_vae, vae_updater
from emoji_xl.vocabulary import learn_tokenizer
from emoji_xl.words import write_words

MANIFEST = Path(__file__).with_name("manifest.json")
SHEET_PAIRS = 48


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
        for template in WITH_STYLE + WITHOUT_STYLE + WITHOUT_CONCEPT
    ]
    texts += [f"{style} style, {modifier}" for style in TRAIN_STYLES for modifier in MODIFIERS]
    return learn_tokenizer(texts, prompt_tokens=size.prompt_tokens)


def make_vae(recipe: Recipe) -> AutoencoderKL:
    """Train the autoencoder, normalise its latents, write it to the run's `vae/`."""
    artwork = Artwork.load(recipe.pack, train_pictures(), recipe.device, recipe.size.image_size)
    updater = vae_updater(recipe.size, recipe.device, recipe.clock("vae"))
    losses = train_vae(updater, artwork, batch=recipe.batch, compiled=recipe.compiled)
    vae = recipe.follow("vae", updater, losses)
    normalise_latents(vae, artwork)
    quality = psnr(vae, on_white(artwork.rgba))
    recipe.record(stage="vae", finished=True, steps=updater.step, psnr=round(quality, 2))
    replace_folder(recipe.run / "vae", vae.save_pretrained)
    return vae


def make_base(recipe: Recipe, *, init: Path | None, dropout: float) -> StableDiffusionXLPipeline:
    """Train UNet and text encoders and write the pipeline to the run's `model/`.

    Starts from the pipeline at `init`, its autoencoder included, or from scratch with the run's
    own autoencoder.
    """
    if init is None:
        pipe = build_pipeline(recipe.size, base_tokenizer(recipe.size))
        pipe.vae = AutoencoderKL.from_pretrained(recipe.run / "vae")
    else:
        pipe = StableDiffusionXLPipeline.from_pretrained(init, dtype=torch.float32)
    pipe.to(recipe.device)
    pictures = train_pictures()
    artwork = Artwork.load(recipe.pack, pictures, recipe.device, recipe.size.image_size)
    batches = Batches(artwork, pipe.vae, pipe)
    updater = base_updater(pipe, recipe.device, recipe.clock("unet"), dropout=dropout)
    losses = train_base(
        updater,
        batches,
        scheduler_alphas(pipe),
        batch=recipe.batch,
        compiled=recipe.compiled,
    )

    def publish(average: Denoiser) -> StableDiffusionXLPipeline:
        averaged = averaged_pipeline(pipe, average)

        def write(folder: Path) -> None:
            save_pipeline(averaged, folder)
            write_words(MANIFEST, folder / "words.json")

        replace_folder(recipe.run / "model", write)
        sheets = recipe.run / "sheets"
        sheets.mkdir(exist_ok=True)
        chosen = spread(pictures, SHEET_PAIRS)
        pair_sheet(averaged, chosen).save(sheets / f"{updater.step:06d}.png")
        return averaged

    average = recipe.follow("unet", updater, losses, publish)
    recipe.record(stage="unet", finished=True, steps=updater.step, s=updater.clock.seconds)
    return publish(average)


def averaged_pipeline(
    pipe: StableDiffusionXLPipeline, average: Denoiser
) -> StableDiffusionXLPipeline:
    """Return `pipe` with the averaged UNet and text encoders in place of those in training."""
    averaged = assemble(
        pipe.components
        | {
            "unet": average.unet,
            "text_encoder": average.text_encoder,
            "text_encoder_2": average.text_encoder_2,
        }
    )
    averaged.set_progress_bar_config(disable=True)
    return averaged


def make_judge(recipe: Recipe, name: str, vae_folder: Path, out: Path) -> Judge:
    """Train, calibrate and write one judge to `out`, with its marks on artwork it never saw."""
    stage = f"judge-{name}"
    pictures = read_manifest(MANIFEST)

    def load(held_out: bool) -> Artwork:
        chosen = [p for p in pictures if is_held_out(p) == held_out]
        return Artwork.load(recipe.pack, chosen, recipe.device, recipe.size.image_size)

    judge = Judge.untrained(name, labels_of(pictures), toy=recipe.size.image_size < 64)
    lessons = Lessons.of(load(held_out=False), judge.labels)
    updater = judge_updater(judge, recipe.device, recipe.clock(stage))
    losses = train_judge(updater, lessons, batch=recipe.batch, compiled=recipe.compiled)
    judge = recipe.follow(stage, updater, losses)
    vae = AutoencoderKL.from_pretrained(vae_folder, torch_dtype=torch.float32)
    finish_judge(judge, lessons, vae.to(recipe.device))
    marks = calibrate(judge, load(held_out=True))
    recipe.record(stage=stage, finished=True, steps=updater.step, **dataclasses.asdict(marks))

    def write(folder: Path) -> None:
        judge.save(folder)
        # On all artwork, for whoever wants the judge's own share of some pairs.
        everything = Artwork.load(recipe.pack, pictures, recipe.device, recipe.size.image_size)
        found = {"marks": dataclasses.asdict(marks), "missed": missed(judge, everything)}
        (folder / "marks.json").write_text(json.dumps(found, indent=1) + "\n")

    out.mkdir(parents=True, exist_ok=True)
    replace_folder(out / name, write)
    return judge
