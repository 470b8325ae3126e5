"""What the studio needs to know about the base model at hand: sizes, defaults, example prompts."""

from dataclasses import dataclass

import torch
from diffusers import StableDiffusionXLPipeline

from studio.vocabulary import Vocabulary

SMALL = 512
"""Below this native size (pixels) a base makes one size, and its pictures are shown enlarged."""

# SDXL's training buckets (https://arxiv.org/abs/2307.01952, appendix I), as shares of 1024 px.
_SHAPES = (
    (1024, 1024),
    (1152, 896),
    (896, 1152),
    (1216, 832),
    (832, 1216),
    (1344, 768),
    (768, 1344),
)

_EMOJI_PROMPTS = (
    "a red fox, noto style",
    "a strawberry, fluent style",
    "a rabbit, blob style",
    "a pizza, twemoji style",
    "a cupcake, flat style",
)
_PHOTO_PROMPTS = (
    "a red fox in fresh snow, soft morning light",
    "still life with lemons, oil painting",
    "a lighthouse on a cliff, storm clouds, wide shot",
    "a ceramic teapot, studio photograph",
)


@dataclass(frozen=True)
class Base:
    """A base model in the page's terms; sizes are (width, height) in pixels.

    The native size and the base's own sampler come first.
    """

    name: str
    device: str
    samplers: tuple[str, ...]
    sizes: tuple[tuple[int, int], ...]
    steps: int
    guidance: float
    examples: tuple[str, ...]
    vocabulary: Vocabulary | None = None
    """What a base with few words knows; None for one that takes any."""

    @property
    def native(self) -> tuple[int, int]:
        """The size that the base was trained at."""
        return self.sizes[0]

    @property
    def is_small(self) -> bool:
        """Whether its pictures are shown enlarged, pixel by pixel."""
        return max(self.native) < SMALL


def describe(
    pipe: StableDiffusionXLPipeline,
    name: str,
    samplers: tuple[str, ...],
    vocabulary: Vocabulary | None = None,
) -> Base:
    """Read sizes and device from a pipeline and choose defaults for its kind."""
    side = int(pipe.unet.config.sample_size) * int(pipe.vae_scale_factor)
    small = side < SMALL
    shapes = ((side, side),) if small else tuple(_scaled(shape, side) for shape in _SHAPES)
    return Base(
        name=name,
        device=_device_words(pipe._execution_device),
        samplers=samplers,
        sizes=shapes,
        steps=22 if small else 30,
        guidance=3.0 if small else 6.0,
        examples=_EMOJI_PROMPTS if small else _PHOTO_PROMPTS,
        vocabulary=vocabulary,
    )


def _scaled(shape: tuple[int, int], side: int) -> tuple[int, int]:
    return shape[0] * side // 1024 // 8 * 8, shape[1] * side // 1024 // 8 * 8


def _device_words(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return {"cpu": "CPU", "mps": "Apple GPU"}.get(device.type, device.type)
