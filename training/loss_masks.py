"""Which parts of an image count in the loss: `NAME-masklabel.png` beside it, or its alpha.

White is all, black is nothing but the setting `unmasked_weight`.
"""

from collections.abc import Iterable
from pathlib import Path

import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional as F

from training.images import SUFFIXES, to_grey

LABEL = "-masklabel"


def is_mask(path: Path) -> bool:
    """Whether a file is a mask by its name, and so no image to train on."""
    return path.stem.endswith(LABEL)


def find_mask(image: Path, kind: str) -> Path | None:
    """Return the file of an image's mask: one beside it or, with `alpha`, the image itself."""
    if kind == "masklabel":
        beside = (image.with_name(f"{image.stem}{LABEL}{suffix}") for suffix in sorted(SUFFIXES))
        return next((path for path in beside if path.is_file()), None)
    if kind == "alpha":
        with Image.open(image) as file:
            return image if file.has_transparency_data else None
    return None


def orphans(masks: Iterable[Path], images: Iterable[Path]) -> list[Path]:
    """Return the masks of no image."""
    known = {image.stem + LABEL for image in images}
    return [mask for mask in masks if mask.stem not in known]


def read_mask(image: Path, mask: Path, size: tuple[int, int]) -> Image.Image:
    """Read a mask upright, as greyscale of its image's (height, width)."""
    with Image.open(mask) as file:
        upright = ImageOps.exif_transpose(file)
        grey = upright.convert("RGBA").getchannel("A") if mask == image else upright.convert("L")
        return grey.resize((size[1], size[0]), Image.Resampling.BILINEAR)


def shares(mask: Image.Image, latents: Tensor, unmasked: float) -> Tensor:
    """Return how much each place (1, h, w) of latents (4, h, w) counts, 1 in the mean.

    So a small subject is not learned more slowly than a large one. A mask that leaves nothing makes
    an image count nothing.
    """
    levels = to_grey(mask)[None]
    height, width = latents.shape[-2:]
    cells = F.adaptive_avg_pool2d(levels, (height, width))
    weights = unmasked + (1 - unmasked) * cells
    return weights / weights.mean().clamp(min=torch.finfo(weights.dtype).tiny)
