"""Words that change how a picture is drawn, whatever it shows: "cat, noto style, pixel art".

They are made from the artwork itself, so that every concept comes in every modifier and none can be
learned by heart. The base learns from them that words behind a caption change the drawing and leave
the thing alone, which is what a style adapter's trigger word asks for.
"""

import math
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from emoji_xl.data import on_white, over, shrunk

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in a pixel's brightness (ITU-R BT.601)."""

Modifier = Callable[[Tensor], Tensor]
"""From uint8 RGBA (N, 4, H, W) to pictures (N, 3, H, W) in [-1, 1]."""


def brightness(images: Tensor) -> Tensor:
    """Brightness (N, 1, H, W) in [0, 1] of pictures in [-1, 1]."""
    weights = torch.tensor(LUMA, device=images.device)
    return ((images + 1) / 2 * weights[None, :, None, None]).sum(dim=1, keepdim=True)


def grey(rgba: Tensor) -> Tensor:
    """Brightness alone."""
    return brightness(on_white(rgba)).expand(-1, 3, -1, -1) * 2 - 1


def negative(rgba: Tensor) -> Tensor:
    """Every channel inverted, the ground too."""
    return -on_white(rgba)


def pixelated(rgba: Tensor) -> Tensor:
    """24 squares across a picture of 128 pixels."""
    images = on_white(rgba)
    side = images.shape[-1]
    small = F.interpolate(images, size=max(2, side * 3 // 16), mode="area")
    return F.interpolate(small, size=side, mode="nearest")


def blurry(rgba: Tensor) -> Tensor:
    """Down to a sixth of the resolution and smoothly up again."""
    images = on_white(rgba)
    side = images.shape[-1]
    small = F.interpolate(images, size=max(2, side // 6), mode="area")
    return F.interpolate(small, size=side, mode="bicubic").clamp(-1, 1)


def pastel(rgba: Tensor) -> Tensor:
    """Half way to white."""
    return on_white(rgba) * 0.45 + 0.55


def posterized(rgba: Tensor) -> Tensor:
    """Three levels a channel."""
    return on_white(rgba).round()


def striped(rgba: Tensor) -> Tensor:
    """White slanted stripes through the thing."""
    images = on_white(rgba)
    y, x = _coordinates(images)
    stripes = (((x + y) * 6) % 1 < 0.3).float()
    return images * (1 - stripes) + stripes


def wavy(rgba: Tensor) -> Tensor:
    """Rows pushed sideways along a sine."""
    images = on_white(rgba)
    y, x = _coordinates(images)
    shifted = 2 * (x + 0.05 * torch.sin(y * 6 * math.pi)) - 1
    grid = torch.stack([shifted, 2 * y - 1], dim=-1).expand(len(images), -1, -1, -1)
    sampled = F.grid_sample(images - 1, grid, align_corners=False)
    return sampled.clamp(-2, 0) + 1


def rainbow(rgba: Tensor) -> Tensor:
    """The spectrum from left to right in place of the colours."""
    images = on_white(rgba)
    _, x = _coordinates(images)
    phases = x[None] * 2 * math.pi + torch.tensor([0.0, 2.1, 4.2], device=x.device)[:, None, None]
    return _duotone(images, (phases.cos() + 1) / 2)


def upside_down(rgba: Tensor) -> Tensor:
    """Turned by half a circle."""
    return on_white(rgba).flip(2, 3)


def small(rgba: Tensor) -> Tensor:
    """Half the size in the middle."""
    return shrunk(on_white(rgba), 0.5)


def tinted(*colour: float) -> Modifier:
    """From black through a colour (red, green, blue in [0, 1]) to white, by brightness."""

    def tint(rgba: Tensor) -> Tensor:
        images = on_white(rgba)
        return _duotone(images, torch.tensor(colour, device=images.device)[:, None, None])

    return tint


def on_ground(*colour: float) -> Modifier:
    """The thing on a ground of one colour (red, green, blue in [0, 1])."""

    def ground(rgba: Tensor) -> Tensor:
        channels = torch.tensor(colour, device=rgba.device)[None, :, None, None]
        return over(rgba, channels * 2 - 1)

    return ground


def _coordinates(images: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and columns (H, W) of the pixels' middles, in [0, 1]."""
    height, width = images.shape[-2:]
    y = (torch.arange(height, device=images.device) + 0.5) / height
    x = (torch.arange(width, device=images.device) + 0.5) / width
    down, across = torch.meshgrid(y, x, indexing="ij")
    return down, across


def _duotone(images: Tensor, colour: Tensor) -> Tensor:
    """Black for darkness 1, `colour` (3, 1 or H, 1 or W) for the middle, white for brightness 1."""
    light = brightness(images)
    shade = torch.where(light < 0.5, 2 * light * colour, colour + (2 * light - 1) * (1 - colour))
    return shade * 2 - 1


MODIFIERS: Mapping[str, Modifier] = {
    "grey": grey,
    "negative": negative,
    "pixel art": pixelated,
    "blurry": blurry,
    "pastel": pastel,
    "posterized": posterized,
    "striped": striped,
    "wavy": wavy,
    "rainbow": rainbow,
    "upside down": upside_down,
    "small": small,
    "sepia": tinted(0.62, 0.45, 0.25),
    "red tint": tinted(0.9, 0.1, 0.15),
    "green tint": tinted(0.1, 0.65, 0.2),
    "blue tint": tinted(0.15, 0.3, 0.9),
    "on black": on_ground(0.0, 0.0, 0.0),
    "on yellow": on_ground(1.0, 0.85, 0.2),
    "on blue": on_ground(0.25, 0.5, 1.0),
}
"""Each modifier by the words that ask for it."""
