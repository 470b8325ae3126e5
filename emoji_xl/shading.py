"""How a picture is shaded: how large the steps of colour between neighbouring pixels are.

Flat sets have none or large ones, shaded sets many small ones, whatever they show.
"""

import torch
from torch import Tensor

from emoji_xl.palette import is_drawn

DISTANCES = (1, 3)
"""In pixels, down and across."""
STEPS = 18
"""Bins of a step's size, two an octave from 1/256 of the range on."""
LIGHTS = 6
"""Bins of the brightness that the step starts from."""
FEATURES = len(DISTANCES) * 2 * STEPS * LIGHTS


def shading_shares(images: Tensor) -> Tensor:
    """Square roots of the shares of colour steps in images (N, 3, H, W) in [-1, 1].

    A step is the largest change of a channel between two pixels that are not background. Returns
    (N, `FEATURES`), shares within each distance and direction.
    """
    images = images.clamp(-1, 1)
    drawn = is_drawn(images)[:, 0]
    parts = []
    for distance in DISTANCES:
        for axis in (1, 2):
            length = drawn.shape[axis] - distance
            first, second = drawn.narrow(axis, 0, length), drawn.narrow(axis, distance, length)
            start = images.narrow(axis + 1, 0, length)
            step = (images.narrow(axis + 1, distance, length) - start).abs().amax(dim=1)
            size = (torch.log2(step.clamp(min=1 / 256) * 256) * 2).long().clamp(0, STEPS - 1)
            light = ((start.mean(dim=1) + 1) / 2 * LIGHTS).long().clamp(0, LIGHTS - 1)
            parts.append(_shares(size * LIGHTS + light, first & second, STEPS * LIGHTS))
    return torch.cat(parts, dim=1)


def _shares(bins: Tensor, counted: Tensor, count: int) -> Tensor:
    histogram = torch.zeros(len(bins), count, device=bins.device)
    histogram.scatter_add_(1, bins.flatten(1), counted.flatten(1).float())
    return (histogram / histogram.sum(dim=1, keepdim=True).clamp(min=1e-6)).sqrt()
