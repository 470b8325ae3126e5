"""Style reading: colours and their steps counted right, styles told apart by them."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from emoji_xl.palette import colour_shares
from emoji_xl.shading import DISTANCES, FEATURES, LIGHTS, STEPS, shading_shares
from emoji_xl.style_reading import StyleReading, fit_style


def slow_shares(image: np.ndarray, bins: int) -> np.ndarray:
    """The same in loops: one (3, H, W) picture in [-1, 1]."""
    counts = np.zeros((bins, bins, bins))
    for pixel in image.reshape(3, -1).T:
        if (1 - pixel.min()) / 2 <= 0.02:
            continue
        place = (pixel + 1) / 2 * (bins - 1)
        low = np.minimum(np.floor(place), bins - 2).astype(int)
        above = place - low
        for corner in np.ndindex(2, 2, 2):
            weight = np.prod(np.where(corner, above, 1 - above))
            counts[tuple(low + corner)] += weight
    total = counts.sum()
    return np.sqrt(counts / total if total else counts).reshape(-1)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), bins=st.integers(2, 6))
def test_colour_shares_equal_the_slow_count(seed: int, bins: int) -> None:
    image = torch.rand(3, 5, 5, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    image[:, 0] = 1  # background
    image[:, 1, 0] = torch.tensor([1.0, -1.0, 1.0])  # the edges of the cube
    found = colour_shares(image[None], bins)[0].numpy()
    np.testing.assert_allclose(found, slow_shares(image.numpy(), bins), atol=1e-4)


def slow_shading(image: np.ndarray) -> np.ndarray:
    """The same in loops: one (3, H, W) picture in [-1, 1]."""
    parts = []
    _, height, width = image.shape
    for distance in DISTANCES:
        for down, across in ((distance, 0), (0, distance)):
            counts = np.zeros((STEPS, LIGHTS))
            for y in range(height - down):
                for x in range(width - across):
                    first, second = image[:, y, x], image[:, y + down, x + across]
                    if min((1 - first.min()) / 2, (1 - second.min()) / 2) <= 0.02:
                        continue
                    step = max(np.abs(second - first).max(), 1 / 256)
                    size = min(int(2 * np.log2(step * 256)), STEPS - 1)
                    counts[size, min(int((first.mean() + 1) / 2 * LIGHTS), LIGHTS - 1)] += 1
            parts.append(np.sqrt(counts / max(counts.sum(), 1)).reshape(-1))
    return np.concatenate(parts)


@pytest.mark.parametrize("seed", range(5))
def test_shading_shares_equal_the_slow_count(seed: int) -> None:
    image = torch.rand(3, 9, 7, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    image[:, 2:4] = 1  # background
    image[:, 6] = image[:, 5] + 0.004  # the smallest steps
    image.clamp_(-1, 1)
    found = shading_shares(image[None])[0]
    assert found.shape == (FEATURES,)
    np.testing.assert_allclose(found.numpy(), slow_shading(image.numpy()), atol=0.02)


def test_an_empty_picture_has_neither_colours_nor_shading() -> None:
    white = torch.ones(1, 3, 8, 8)
    assert colour_shares(white, 4).abs().sum() == 0
    assert shading_shares(white).abs().sum() == 0


def test_styles_of_the_same_colours_are_told_apart_by_shading() -> None:
    torch.manual_seed(0)
    ramp = torch.linspace(-0.9, 0.7, 16)
    shaded = ramp.expand(3, 16, 16)
    shuffled = ramp[torch.randperm(16)].expand(3, 16, 16)
    images = torch.stack([shaded, shuffled] * 8) + 0.02 * torch.randn(16, 3, 16, 16)
    styles = torch.tensor([0, 1] * 8)
    reading = StyleReading(bins=6, styles=2)
    fit_style(reading, images.half(), styles)
    assert (reading(images).argmax(1) == styles).all()
    # Neither in training mode, with its dropout, nor left to be trained on.
    assert torch.equal(reading(images), reading(images))
    assert not any(p.requires_grad for p in reading.parameters())
