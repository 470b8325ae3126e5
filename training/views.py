"""The ways in which each training image is looked at: its size, where it is cut, mirrored or not.

All views of an image are encoded once; which one a batch gets is drawn anew each time.
"""

from dataclasses import dataclass

import torch
from diffusers import StableDiffusionXLPipeline
from PIL import Image, ImageOps

from training.buckets import bucket_sizes, nearest
from training.config import Config
from training.data import CaptionedImage
from training.images import Framing, Place, Size, fit

MIDDLE = (0.5, 0.5)


@dataclass(frozen=True)
class View:
    """A picture of (height, width) cut at `place`, out of the image or of its mirror image."""

    size: Size
    place: Place = MIDDLE
    mirrored: bool = False

    def of(self, image: Image.Image) -> tuple[Image.Image, Framing]:
        """Return what is seen of `image`, with the numbers that SDXL is told of it."""
        return fit(ImageOps.mirror(image) if self.mirrored else image, self.size, self.place)


@dataclass(frozen=True)
class Gaze:
    """What a run's settings make of every image: `crops` cuts of the best of `sizes`."""

    sizes: tuple[Size, ...]
    crops: int
    flip: bool

    @classmethod
    def of(cls, config: Config, pipe: StableDiffusionXLPipeline, side: int) -> "Gaze":
        """Return the gaze of a run whose squares have sides of `side` pixels."""
        halvings = len(pipe.unet.config.block_out_channels) - 1
        multiple = pipe.vae_scale_factor * 2**halvings
        sizes = bucket_sizes(side, multiple) if config.buckets else ((side, side),)
        return cls(sizes, config.crops, config.flip)

    def size(self, image: CaptionedImage) -> Size:
        """Return the size that the image is trained at."""
        return nearest(image.size, self.sizes)

    def views(self, image: CaptionedImage) -> tuple[View, ...]:
        """Return the image's views, the same ones for the same file."""
        generator = torch.Generator().manual_seed(int(image.digest[:15], 16))
        places: list[Place] = [MIDDLE]
        if self.crops > 1:
            drawn = torch.rand(self.crops, 2, generator=generator).tolist()
            places = [(top, left) for top, left in drawn]
        mirrored = (False, True) if self.flip else (False,)
        return tuple(View(self.size(image), place, side) for place in places for side in mirrored)
