"""Any image file as an upright RGB picture, and its fit into the size that the base draws."""

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

Size = tuple[int, int]
"""(height, width) in pixels."""

Place = tuple[float, float]
"""Which share of what is cut off goes at the top and at the left, from 0 to 1."""

SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".jfif", ".webp", ".avif", ".bmp", ".gif", ".tif", ".tiff"}
)

# What Pillow raises on files that are broken, hostile or not images at all.
UNREADABLE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    RuntimeError,  # of the AVIF decoder
    TypeError,  # of EXIF whose fields have wrong types
    struct.error,
    Image.DecompressionBombError,
)


@dataclass(frozen=True)
class Framing:
    """SDXL's size conditioning of one image: (height, width) and (top, left) pairs in pixels.

    https://arxiv.org/abs/2307.01952, section 2.2.
    """

    original_size: Size
    crop_top_left: tuple[int, int]
    target_size: Size

    @classmethod
    def plain(cls, size: Size) -> "Framing":
        """Return the framing of a picture that was drawn at its size: what prompts get, too."""
        return cls(size, (0, 0), size)

    @property
    def time_ids(self) -> tuple[int, ...]:
        """The six numbers in the order that the UNet takes them."""
        return self.original_size + self.crop_top_left + self.target_size


def open_image(path: Path) -> Image.Image:
    """Read an image upright, as RGB, its transparent parts on white.

    Of an animation it takes the first frame. Raises one of `UNREADABLE`.
    """
    with Image.open(path) as file:
        image = ImageOps.exif_transpose(file)
        if image.mode.startswith(("I", "F")):
            return _from_deep_grey(image)
        if image.has_transparency_data:
            image = image.convert("RGBA")
            canvas = Image.new("RGBA", image.size, "white")
            return Image.alpha_composite(canvas, image).convert("RGB")
        return image.convert("RGB")


def fit(image: Image.Image, size: Size, place: Place) -> tuple[Image.Image, Framing]:
    """Scale an image until it just covers `size` and cut off at `place` what is over."""
    width, height = image.size
    rows, columns = size
    scale = max(rows / height, columns / width)
    scaled = (max(columns, round(width * scale)), max(rows, round(height * scale)))
    top, left = int((scaled[1] - rows) * place[0]), int((scaled[0] - columns) * place[1])
    framing = Framing((height, width), (top, left), size)
    if scaled == image.size:
        return image.crop((left, top, left + columns, top + rows)), framing
    # Only the cut is computed: all of a scaled strip of 1 x 65535 pixels would not fit memory.
    box = (
        left * width / scaled[0],
        top * height / scaled[1],
        (left + columns) * width / scaled[0],
        (top + rows) * height / scaled[1],
    )
    return image.resize((columns, rows), Image.Resampling.LANCZOS, box=box), framing


def to_pixels(image: Image.Image) -> Tensor:
    """Return an RGB image as a tensor (3, H, W), fp32 in [-1, 1]."""
    array = torch.from_numpy(np.asarray(image, dtype=np.float32).copy())
    return array.permute(2, 0, 1) / 127.5 - 1


def to_grey(image: Image.Image) -> Tensor:
    """Return a greyscale image as a tensor (H, W), fp32 in [0, 1]."""
    return torch.from_numpy(np.asarray(image, dtype=np.float32).copy()) / 255


def _from_deep_grey(image: Image.Image) -> Image.Image:
    """Bring 16-bit, 32-bit and floating greyscale to 8 bits by the format's own white."""
    values = np.asarray(image, dtype=np.float64)
    white = 1.0 if image.mode == "F" else 65535.0
    grey = np.clip(np.round(values / white * 255), 0, 255).astype(np.uint8)
    if "transparency" in image.info:  # the one grey that a 16-bit PNG calls transparent
        grey[values == image.info["transparency"]] = 255
    return Image.fromarray(grey).convert("RGB")
