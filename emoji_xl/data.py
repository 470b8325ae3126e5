"""The artwork as tensors on the training device, and its augmentation there."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import CLIPTokenizer

from emoji_xl.artwork import Picture, read_pack


@dataclass(frozen=True)
class Artwork:
    """Pictures with their pixels; `rgba` is uint8 (N, 4, H, W)."""

    pictures: tuple[Picture, ...]
    rgba: Tensor

    @classmethod
    def load(
        cls, pack: Path, pictures: Sequence[Picture], device: torch.device, pixels: int
    ) -> "Artwork":
        """Read `pictures` from the pack and scale them to `pixels` square."""
        arrays = [
            np.asarray(image.resize((pixels, pixels)) if image.width != pixels else image)
            for _, image in read_pack(pack, pictures)
        ]
        rgba = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()
        return cls(tuple(pictures), rgba.to(device))


def over(rgba: Tensor, background: Tensor) -> Tensor:
    """Composite uint8 (N, 4, H, W) over a colour (N, 3, 1, 1) in [-1, 1]; returns (N, 3, H, W)."""
    colour = rgba[:, :3].float() / 127.5 - 1
    alpha = rgba[:, 3:].float() / 255
    return colour * alpha + background * (1 - alpha)


def on_white(rgba: Tensor) -> Tensor:
    """Composite uint8 RGBA over white, in [-1, 1]."""
    return over(rgba, torch.ones(len(rgba), 3, 1, 1, device=rgba.device))


def on_grounds(rgba: Tensor, *, white: float) -> Tensor:
    """Composite uint8 RGBA over white for a share `white` of the pictures, else over any colour."""
    n, device = len(rgba), rgba.device
    is_white = torch.rand(n, 1, 1, 1, device=device) < white
    return over(rgba, torch.where(is_white, 1.0, torch.rand(n, 3, 1, 1, device=device) * 2 - 1))


def placed(images: Tensor, theta: Tensor, *, mode: str = "bilinear") -> Tensor:
    """Sample images (N, 3, H, W) in [-1, 1] at affine places (N, 2, 3); outside them is white."""
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    # Zero padding is white once white is the origin.
    return F.grid_sample(images - 1, grid, mode=mode, align_corners=False).clamp(-2, 0) + 1


def shrunk(images: Tensor, share: float) -> Tensor:
    """Shrink pictures (N, 3, H, W) in [-1, 1] to a `share` of their size, amid white."""
    theta = torch.eye(2, 3, device=images.device) / share
    return placed(images, theta.expand(len(images), -1, -1))


def shift_and_scale(images: Tensor, *, shift: float, smallest: float) -> Tensor:
    """Shrink each picture down to `smallest` and move it by up to `shift` of its size, on white."""
    n = len(images)
    scale = 1 / torch.empty(n, device=images.device).uniform_(smallest, 1.0)
    offset = torch.empty(n, 2, device=images.device).uniform_(-2 * shift, 2 * shift)
    theta = torch.zeros(n, 2, 3, device=images.device)
    theta[:, 0, 0] = theta[:, 1, 1] = scale
    theta[:, :, 2] = offset
    return placed(images, theta, mode="bicubic")


def vary_colours(images: Tensor) -> Tensor:
    """Mix the colour channels of some pictures and drain or invert others.

    The autoencoder has to serve styles that it never sees, ink drawings among them.
    """
    n, device = len(images), images.device
    mixer = torch.eye(3, device=device) + 0.25 * torch.randn(n, 3, 3, device=device)
    mixer = mixer / mixer.sum(dim=2, keepdim=True).clamp(min=0.3)
    mixed = torch.einsum("nij,njhw->nihw", mixer, images)
    grey = images.mean(dim=1, keepdim=True).expand_as(images)
    draw = torch.rand(n, 1, 1, 1, device=device)
    varied = torch.where(draw < 0.35, mixed, images)
    varied = torch.where((draw >= 0.35) & (draw < 0.45), grey, varied)
    varied = torch.where((draw >= 0.45) & (draw < 0.5), -images, varied)
    return varied.clamp(-1, 1)


def caption_tokens(
    pictures: Sequence[Picture],
    tokenizer: CLIPTokenizer,
    write: Callable[[str, str, random.Random], str],
    *,
    variants: int,
    seed: int = 0,
) -> Tensor:
    """Token ids (N, variants, prompt_tokens) of so many captions of every picture.

    `write` makes a caption out of a style and a concept.
    """
    random_ = random.Random(seed)
    texts = [write(p.style, p.concept, random_) for p in pictures for _ in range(variants)]
    ids = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
    return ids.view(len(pictures), variants, -1)


def empty_tokens(tokenizer: CLIPTokenizer) -> Tensor:
    """Token ids (prompt_tokens,) of the empty prompt."""
    return tokenizer("", padding="max_length", return_tensors="pt").input_ids[0]
