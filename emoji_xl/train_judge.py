"""Training of the judges: real artwork of every style and concept, strongly augmented."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor
from torch.optim.swa_utils import update_bn

from emoji_xl.artwork import Picture
from emoji_xl.clock import Clock
from emoji_xl.data import Artwork, on_grounds, on_white, placed, vary_colours
from emoji_xl.judge import Judge, Labels
from emoji_xl.style_reading import fit_style
from emoji_xl.train_vae import encode
from emoji_xl.updater import Updater

PEAK_RATE = 1e-3
LABEL_SMOOTHING = 0.1
# Shares of pictures that each change falls on.
VARIED = 0.4
CLOSE = 0.25
SOFTENED = 0.5
PATCHED = 0.3
NOISY = 0.3
GRAINED = 0.5
MIXED = 0.4
"""Share of pictures that another one is blended into (mixup, arXiv 1710.09412)."""
GRAIN = 0.04
"""Deviation of the noise on pictures that a style is read from; pixels are in [-1, 1]."""
GRAINED_COPIES = 3
ONE_IN_TEN = 26
"""A first hash byte below this holds a picture out: 10 %."""


def is_held_out(picture: Picture) -> bool:
    """Whether the judges never see this picture while they learn.

    All pairs that the base never sees, and one in ten of the pictures it does see and of the
    held-out styles: on these a judge is as honest about copies as about new pictures.
    """
    if picture.split == "pair":
        return True
    byte = hashlib.sha256(f"judge/{picture.file}".encode()).digest()[0]
    return picture.split in ("train", "style") and byte < ONE_IN_TEN


def labels_of(pictures: Sequence[Picture]) -> Labels:
    """Every concept and style of `pictures`, sorted."""
    return Labels(
        tuple(sorted({p.concept for p in pictures})), tuple(sorted({p.style for p in pictures}))
    )


def judge_updater(judge: Judge, device: torch.device, clock: Clock) -> Updater[Judge]:
    """Move a judge to `device` and build its optimizer."""
    judge.to(device)
    return Updater(judge, clock, peak=PEAK_RATE, decay=0.999, weight_decay=0.05)


def turned(images: Tensor) -> Tensor:
    """Flip, turn, stretch and move pictures (N, 3, H, W) on white, each in its own way."""
    n, device = len(images), images.device

    def uniform(low: float, high: float) -> Tensor:
        return torch.empty(n, device=device).uniform_(low, high)

    angle = uniform(-0.3, 0.3)
    flip = torch.where(uniform(0, 1) < 0.5, -1.0, 1.0)
    zoom = torch.where(uniform(0, 1) < CLOSE, uniform(1.2, 2.5), torch.ones(n, device=device))
    across, down = 1 / (zoom * uniform(0.6, 1.1)), 1 / (zoom * uniform(0.6, 1.1))
    cos, sin = angle.cos(), angle.sin()
    theta = torch.stack(
        [
            torch.stack([flip * across * cos, -down * sin, uniform(-0.25, 0.25)], dim=1),
            torch.stack([flip * across * sin, down * cos, uniform(-0.25, 0.25)], dim=1),
        ],
        dim=1,
    )
    return placed(images, theta)


def softened(images: Tensor) -> Tensor:
    """Shrink and enlarge a batch by a random factor: generated pictures are softer than artwork."""
    side = images.shape[-1]
    smaller = max(8, int(side * (0.4 + 0.6 * float(torch.rand(())))))
    down = F.interpolate(images, size=smaller, mode="bilinear", antialias=True)
    return F.interpolate(down, size=side, mode="bilinear").clamp(-1, 1)


def patched(images: Tensor) -> Tensor:
    """Cover a random rectangle of each picture with noise (random erasing, arXiv 1708.04896)."""
    n, _, height, width = images.shape
    device = images.device
    top, left = torch.rand(2, n, 1, 1, 1, device=device)
    tall, wide = 0.1 + 0.3 * torch.rand(2, n, 1, 1, 1, device=device)
    y = torch.linspace(0, 1, height, device=device)[:, None]
    x = torch.linspace(0, 1, width, device=device)[None, :]
    inside = (y >= top) & (y < top + tall) & (x >= left) & (x < left + wide)
    return torch.where(inside, torch.rand_like(images) * 2 - 1, images)


def some(share: float, count: int, device: torch.device) -> Tensor:
    """Choose each of `count` pictures with probability `share`: bool (count, 1, 1, 1)."""
    return torch.rand(count, 1, 1, 1, device=device) < share


def augmented(rgba: Tensor) -> Tensor:
    """Pictures (N, 3, H, W) as a judge learns from them.

    Every kind of change falls on some pictures of a batch and not on others, so that the statistics
    of batch norm are those of the mixture, clean pictures included.
    """
    n, device = len(rgba), rgba.device
    images = on_grounds(rgba, white=0.8)
    images = turned(torch.where(some(VARIED, n, device), vary_colours(images), images))
    images = torch.where(some(SOFTENED, n, device), softened(images), images)
    images = torch.where(some(PATCHED, n, device), patched(images), images)
    noise = 0.1 * torch.rand(n, 1, 1, 1, device=device) * torch.randn_like(images)
    return torch.where(some(NOISY, n, device), images + noise, images)


@dataclass(frozen=True)
class Lessons:
    """Artwork with the numbers of its labels: (N,) each."""

    artwork: Artwork
    concepts: Tensor
    styles: Tensor

    @classmethod
    def of(cls, artwork: Artwork, labels: Labels) -> "Lessons":
        """Number the labels of `artwork`."""
        device = artwork.rgba.device
        return cls(
            artwork,
            torch.tensor([labels.concepts.index(p.concept) for p in artwork.pictures]).to(device),
            torch.tensor([labels.styles.index(p.style) for p in artwork.pictures]).to(device),
        )


def train_judge(
    updater: Updater[Judge], lessons: Lessons, *, batch: int, compiled: bool
) -> Iterator[Tensor]:
    """Train the network that names concepts; yield the loss after every step until time is out."""
    judge = updater.module.train()
    if compiled:
        judge.compile()
    rgba = lessons.artwork.rgba
    device = rgba.device
    torch.manual_seed(updater.step)
    while updater.running:
        rows = torch.randint(len(rgba), (batch,), device=device)
        images = augmented(rgba[rows])
        order = torch.randperm(batch, device=device)
        blend = torch.distributions.Beta(0.4, 0.4).sample((batch,)).to(device)
        blend = torch.where(some(MIXED, batch, device).flatten(), blend, 1.0)
        pixel_blend = blend[:, None, None, None]
        images = pixel_blend * images + (1 - pixel_blend) * images[order]
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            logits = judge(images.contiguous(memory_format=torch.channels_last))
        concepts = lessons.concepts[rows]
        loss = blended_loss(logits.float(), concepts, concepts[order], blend).mean()
        updater.update(loss)
        yield loss.detach()


def blended_loss(logits: Tensor, labels: Tensor, others: Tensor, blend: Tensor) -> Tensor:
    """Cross entropy (N,) of pictures that show `labels` by `blend` and `others` by the rest."""

    def entropy(truth: Tensor) -> Tensor:
        return F.cross_entropy(logits, truth, label_smoothing=LABEL_SMOOTHING, reduction="none")

    return blend * entropy(labels) + (1 - blend) * entropy(others)


def finish_judge(judge: Judge, lessons: Lessons, vae: AutoencoderKL) -> None:
    """After the network is trained: measure batch norm on clean artwork, then fit the style.

    Batch norm's statistics are measured for the averaged weights.
    """
    images = on_white(lessons.artwork.rgba)
    update_bn(iter(images.split(128)), judge)
    looks = style_looks(images, vae)
    fit_style(judge.style, torch.cat(looks), lessons.styles.repeat(len(looks)))


@torch.no_grad()
def style_looks(images: Tensor, vae: AutoencoderKL) -> list[Tensor]:
    """What a style is learned from: pictures (N, 3, H, W) in all the looks of generated ones.

    As they are; as the base's autoencoder gives them back; and so with a little noise, since what
    is flat in artwork is never quite flat in generated pictures.
    """
    parts = [vae.decode(encode(vae, part)).sample.clamp(-1, 1) for part in images.split(64)]
    decoded = torch.cat(parts)
    return [images, decoded, *(grained(decoded) for _ in range(GRAINED_COPIES))]


def grained(images: Tensor) -> Tensor:
    """Put a little noise on some pictures (N, 3, H, W) in [-1, 1]."""
    noisy = (images + GRAIN * torch.randn_like(images)).clamp(-1, 1)
    return torch.where(some(GRAINED, len(images), images.device), noisy, images)
