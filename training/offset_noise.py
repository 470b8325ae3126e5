"""Noise whose mean wanders from channel to channel, so that a base learns very dark and bright."""

import math

from torch import Tensor


def with_offset(noise: Tensor, strength: float) -> Tensor:
    """Return noise (N, C, h, w) as if `strength` times a normal number were added to each channel.

    White noise's mean over a channel is independent of the rest of it and has the variance 1/hw, so
    making that mean sqrt(1 + strength^2 hw) times as large gives the very distribution of a sum
    with a second draw. Nothing more is drawn: steps stay a function of the batch, and several
    processes agree. Source: N. Guttenberg, Diffusion with Offset Noise,
    https://www.crosslabs.org/blog/diffusion-with-offset-noise.
    """
    area = noise.shape[-1] * noise.shape[-2]
    growth = math.sqrt(1 + strength**2 * area) - 1
    return noise + growth * noise.mean(dim=(-2, -1), keepdim=True)
