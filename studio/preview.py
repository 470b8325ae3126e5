"""A look at a picture before it is finished: latents to colours by one small linear map.

The map is fitted to the base's own VAE by least squares, from coloured shapes that it encodes: the
3 x 3 latents around a place give the block of pixels there. That costs a few milliseconds a
picture, where the VAE itself takes as long as half a sampling step.
"""

import copy
import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, SchedulerMixin
from PIL import Image
from torch import Tensor, nn

SIDE = 256
"""The longest side of a preview, and the size of the shapes that the map is fitted on (pixels)."""

_PICTURES = 8
_SHAPES = 6
_RIDGE = 1e-3


class Preview:
    """Turns latents (1, channels, h, w) of one VAE into small pictures."""

    def __init__(self, vae: AutoencoderKL) -> None:
        self._vae = vae

    def picture(self, latents: Tensor) -> Image.Image:
        """What these latents will look like, roughly."""
        pixels = self._map @ _neighbourhoods(latents[:1].float().cpu()).T
        height, width = latents.shape[-2:]
        block = F.fold(
            pixels[None],
            (height * self._scale, width * self._scale),
            kernel_size=self._scale,
            stride=self._scale,
        )
        levels = ((block[0] / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
        picture = Image.fromarray(levels.permute(1, 2, 0).numpy())
        picture.thumbnail((SIDE, SIDE))
        return picture

    @functools.cached_property
    def _scale(self) -> int:
        """How many pixels a latent stands for, a side."""
        return int(2 ** (len(self._vae.config.block_out_channels) - 1))

    @functools.cached_property
    @torch.no_grad()
    def _map(self) -> Tensor:
        """(3 * scale * scale, 9 * channels + 1): from a neighbourhood to its block of pixels."""
        side = min(SIDE, int(self._vae.config.sample_size))
        shapes = [_coloured_shapes(side, seed)[None] for seed in range(_PICTURES)]
        encode = _encoder(self._vae)
        x = torch.cat([_neighbourhoods(encode(shape)) for shape in shapes])
        y = torch.cat([F.unfold(shape, self._scale, stride=self._scale)[0].T for shape in shapes])
        ridge = _RIDGE * len(x) * torch.eye(x.shape[1])
        return torch.linalg.solve(x.T @ x + ridge, x.T @ y).T


def _encoder(vae: AutoencoderKL) -> Callable[[Tensor], Tensor]:
    """What takes pixels to latents, a float32 copy: SDXL's overflows in fp16.

    It calls none of the VAE's own methods: under CPU offload those bring the VAE to the GPU and
    throw the UNet off it, amid the sampling.
    """
    last = vae.quant_conv if vae.quant_conv is not None else nn.Identity()
    layers = copy.deepcopy(nn.Sequential(vae.encoder, last)).float()
    device = next(layers.parameters()).device

    def encode(pixels: Tensor) -> Tensor:
        mean, _ = layers(pixels.to(device)).chunk(2, dim=1)
        return (mean * vae.config.scaling_factor).cpu()

    return encode


def _neighbourhoods(latents: Tensor) -> Tensor:
    """(1, channels, h, w) -> (h * w, 9 * channels + 1): each place, those around it and a 1."""
    around = F.unfold(F.pad(latents, (1, 1, 1, 1), mode="replicate"), 3)[0].T
    return torch.cat([around, torch.ones(len(around), 1)], dim=1)


def _coloured_shapes(side: int, seed: int) -> Tensor:
    """(3, side, side) in -1 to 1: discs of any colour over one another, every other time on white.

    White grounds are common, and a map that gets them wrong is wrong in most places.
    """
    generator = torch.Generator().manual_seed(seed)
    grid = torch.linspace(0, 1, side)
    ground = torch.rand(3, 1, 1, generator=generator) * 2 - 1
    picture = (ground if seed % 2 else torch.ones(3, 1, 1)).expand(3, side, side)
    for _ in range(_SHAPES):
        x, y, size, stretch, *colour = torch.rand(7, generator=generator).tolist()
        distance = ((grid[None] - x) / (stretch + 0.3)) ** 2 + (grid[:, None] - y) ** 2
        inside = (distance < (0.05 + 0.25 * size) ** 2)[None]
        tone = torch.tensor(colour).view(3, 1, 1) * 2 - 1
        picture = torch.where(inside, tone, picture)
    return picture


def watch_prediction(scheduler: SchedulerMixin) -> Callable[[Tensor], Tensor]:
    """A function from latents after a step to what that step took the finished latents to be.

    Schedulers of diffusers either return that beside the step or keep it in `model_outputs`; with
    those that do neither the latents themselves have to do. Call it once for a new scheduler.
    """
    step = scheduler.step
    seen: list[Any] = []

    @functools.wraps(step)  # the pipeline looks at its signature
    def watched(*args: Any, **kwargs: Any) -> Any:
        output = step(*args, **kwargs)
        seen[:] = output[1:2] if isinstance(output, tuple) else []
        return output

    scheduler.step = watched

    def prediction(latents: Tensor) -> Tensor:
        kept = getattr(scheduler, "model_outputs", None)
        found = seen[0] if seen else kept[-1] if kept else None
        return found if isinstance(found, Tensor) else latents

    return prediction
