"""Which colours a picture has: emoji sets draw with palettes of their own."""

import torch
from torch import Tensor

GROUND = 0.02
"""A pixel whose darkest channel is this close to white is background."""


def is_drawn(images: Tensor) -> Tensor:
    """Whether pixels of images (N, 3, H, W) in [-1, 1] are not background: bool (N, 1, H, W)."""
    return (1 - images.clamp(-1, 1).amin(dim=1, keepdim=True)) / 2 > GROUND


def colour_shares(images: Tensor, bins: int) -> Tensor:
    """Square roots of the shares of `bins`^3 colours in images (N, 3, H, W) in [-1, 1].

    Each pixel that is not background counts by trilinear weights in the eight bins around it;
    returns (N, bins^3).
    """
    pixels = images.flatten(2).clamp(-1, 1)
    place = (pixels + 1) / 2 * (bins - 1)
    low = place.floor().clamp(max=bins - 2)
    above = place - low
    low = low.long()
    drawn = is_drawn(images).flatten(1).float()
    shares = torch.zeros(len(images), bins**3, device=images.device)
    for corner in range(8):
        steps = [corner >> channel & 1 for channel in range(3)]
        index, weight = torch.zeros_like(low[:, 0]), drawn
        for channel, step in enumerate(steps):
            index = index * bins + low[:, channel] + step
            weight = weight * (above[:, channel] if step else 1 - above[:, channel])
        shares.scatter_add_(1, index, weight)
    return (shares / shares.sum(dim=1, keepdim=True).clamp(min=1e-6)).sqrt()
