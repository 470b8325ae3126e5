"""Stands in for the few parts of torchvision that the peer's script prepares its pictures with.

It does so once, before its first step, so that none of this is timed.
"""

from __future__ import annotations

import importlib.machinery
import sys
import types
from collections.abc import Callable, Sequence
from enum import Enum

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers.utils import is_torchvision_available


class InterpolationMode(Enum):
    """How pictures are scaled."""

    LANCZOS = Image.Resampling.LANCZOS
    BILINEAR = Image.Resampling.BILINEAR
    BICUBIC = Image.Resampling.BICUBIC
    NEAREST = Image.Resampling.NEAREST


class Resize:
    """Brings the shorter side to `size`."""

    def __init__(self, size: int, interpolation: InterpolationMode) -> None:
        self._size = size
        self._resampling = interpolation.value

    def __call__(self, image: Image.Image) -> Image.Image:
        """Scale a picture."""
        scale = self._size / min(image.size)
        width, height = (round(side * scale) for side in image.size)
        return image.resize((width, height), self._resampling)


class CenterCrop:
    """Cuts the middle out."""

    def __init__(self, size: int) -> None:
        self._size = size

    def __call__(self, image: Image.Image) -> Image.Image:
        """Cut a picture."""
        left, top = ((side - self._size) // 2 for side in image.size)
        return crop(image, top, left, self._size, self._size)


class RandomCrop(CenterCrop):
    """Cuts any place out."""

    def get_params(self, image: Image.Image, size: tuple[int, int]) -> tuple[int, int, int, int]:
        """Draw a place: its top, left, height and width."""
        top = int(torch.randint(image.height - size[0] + 1, ()))
        left = int(torch.randint(image.width - size[1] + 1, ()))
        return top, left, *size


class RandomHorizontalFlip:
    """Is made by the script, and not asked for anything here."""

    def __init__(self, p: float) -> None:
        self.p = p


class Compose:
    """One transform after the other."""

    def __init__(self, parts: Sequence[Callable[..., object]]) -> None:
        self._parts = parts

    def __call__(self, image: object) -> object:
        """Transform a picture."""
        for part in self._parts:
            image = part(image)
        return image


class ToTensor:
    """A picture as (3, H, W) from 0 to 1."""

    def __call__(self, image: Image.Image) -> Tensor:
        """Convert a picture."""
        return torch.from_numpy(np.asarray(image, dtype=np.float32).copy()).permute(2, 0, 1) / 255


class Normalize:
    """Shifts and scales all channels alike."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self._mean, self._std = mean[0], std[0]

    def __call__(self, pixels: Tensor) -> Tensor:
        """Shift and scale pixels."""
        return (pixels - self._mean) / self._std


def crop(image: Image.Image, top: int, left: int, height: int, width: int) -> Image.Image:
    """Cut a place out."""
    return image.crop((left, top, left + width, top + height))


def install() -> None:
    """Let `import torchvision` find these, but not transformers, which would want all of it."""
    is_torchvision_available()
    functional = _module("torchvision.transforms.functional", crop)
    transforms = _module(
        "torchvision.transforms",
        InterpolationMode,
        Resize,
        CenterCrop,
        RandomCrop,
        RandomHorizontalFlip,
        Compose,
        ToTensor,
        Normalize,
    )
    package = _module("torchvision")
    package.__dict__["transforms"] = transforms
    transforms.__dict__["functional"] = functional


def _module(name: str, *contents: type | Callable[..., object]) -> types.ModuleType:
    module = types.ModuleType(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    module.__dict__.update({content.__name__: content for content in contents})
    sys.modules[name] = module
    return module
