"""Sample sheets: many prompts, one labelled picture, to be looked at."""

import hashlib
from collections.abc import Sequence
from itertools import zip_longest

import torch
from diffusers import StableDiffusionXLPipeline
from PIL import Image, ImageDraw, ImageFont

from emoji_xl.artwork import Picture
from emoji_xl.captions import plain_caption

STEPS = 22
GUIDANCE = 3.0
LABEL_HEIGHT = 16


def spread(pictures: Sequence[Picture], count: int, *, salt: str = "sheet") -> list[Picture]:
    """`count` pictures with every style in turn, chosen by a hash so that nobody picks the best."""

    def rank(picture: Picture) -> str:
        return hashlib.sha256(f"{salt}/{picture.file}".encode()).hexdigest()

    queues = [
        sorted((p for p in pictures if p.style == style), key=rank)
        for style in sorted({p.style for p in pictures})
    ]
    return [picture for turn in zip_longest(*queues) for picture in turn if picture][:count]


def draw_prompts(
    pipe: StableDiffusionXLPipeline, prompts: Sequence[str], *, seed: int = 0, batch: int = 48
) -> list[Image.Image]:
    """One picture a prompt, each from its own seed."""
    images: list[Image.Image] = []
    for start in range(0, len(prompts), batch):
        part = list(prompts[start : start + batch])
        generators = [
            torch.Generator("cpu").manual_seed(seed + start + row) for row in range(len(part))
        ]
        images += pipe(
            part, num_inference_steps=STEPS, guidance_scale=GUIDANCE, generator=generators
        ).images
    return images


def labelled_sheet(
    images: Sequence[Image.Image],
    labels: Sequence[str],
    *,
    columns: int,
    colours: Sequence[str] | None = None,
) -> Image.Image:
    """Lay out equally sized pictures in rows with a line of text under each, black by default."""
    colours = colours or ["black"] * len(images)
    width, height = images[0].size
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * width, rows * (height + LABEL_HEIGHT)), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=10)
    for place, (image, label, colour) in enumerate(zip(images, labels, colours, strict=True)):
        left, top = place % columns * width, place // columns * (height + LABEL_HEIGHT)
        sheet.paste(image, (left, top))
        pen.text((left + 3, top + height + 1), label, fill=colour, font=font)
    return sheet


def pair_sheet(
    pipe: StableDiffusionXLPipeline, pictures: Sequence[Picture], *, columns: int = 8
) -> Image.Image:
    """Sheet of the captions of `pictures` (style and concept pairs) as the model draws them."""
    prompts = [plain_caption(p.style, p.concept) for p in pictures]
    return labelled_sheet(
        draw_prompts(pipe, prompts), [f"{p.style}: {p.concept}" for p in pictures], columns=columns
    )
