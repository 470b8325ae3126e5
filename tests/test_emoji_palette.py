"""Palettes: colours counted right, styles told apart by them."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from emoji_xl.palette import Palette, colour_shares, fit_palette


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


def test_an_empty_picture_has_no_colours() -> None:
    assert colour_shares(torch.ones(1, 3, 4, 4), 4).abs().sum() == 0


def test_a_palette_learns_which_colours_are_whose() -> None:
    torch.manual_seed(0)
    warm, cold = torch.tensor([0.9, -0.2, -0.8]), torch.tensor([-0.8, 0.1, 0.9])
    images = torch.stack([warm, cold])[:, :, None, None].repeat(8, 1, 6, 6)
    images = (images + 0.1 * torch.randn_like(images)).clamp(-1, 1)
    styles = torch.tensor([0, 1] * 8)
    palette = Palette(bins=6, styles=2)
    fit_palette(palette, images, styles)
    assert (palette(images).argmax(1) == styles).all()
    assert not any(p.requires_grad for p in palette.parameters())
