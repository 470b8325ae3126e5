"""Modifiers: what they do to pictures whose every pixel is known."""

import pytest
import torch
from torch import Tensor

from emoji_xl.data import on_white
from emoji_xl.modifiers import MODIFIERS, brightness


@pytest.fixture
def rgba() -> Tensor:
    """A red square, and noise under half-transparent alpha."""
    torch.manual_seed(0)
    pictures = torch.randint(256, (2, 4, 32, 32), dtype=torch.uint8)
    pictures[0] = 0
    pictures[0, :, 8:24, 8:24] = torch.tensor([255, 0, 0, 255], dtype=torch.uint8)[:, None, None]
    return pictures


@pytest.mark.parametrize("words", MODIFIERS)
def test_every_modifier_changes_pictures_within_range(words: str, rgba: Tensor) -> None:
    before = rgba.clone()
    modified = MODIFIERS[words](rgba)
    assert modified.shape == (2, 3, 32, 32)
    assert modified.abs().max() <= 1 + 1e-6
    assert not torch.allclose(modified, on_white(rgba), atol=0.05)
    assert torch.equal(rgba, before)


@pytest.mark.parametrize(
    ("words", "inside", "ground"),
    [
        ("grey", (-0.402, -0.402, -0.402), (1, 1, 1)),
        ("negative", (-1, 1, 1), (-1, -1, -1)),
        ("pastel", (1, 0.1, 0.1), (1, 1, 1)),
        ("on black", (1, -1, -1), (-1, -1, -1)),
        ("on yellow", (1, -1, -1), (1, 0.7, -0.6)),
        ("small", (1, -1, -1), (1, 1, 1)),
        # Brightness 0.299 of pure red: 0.598 of the way from black to the tint.
        ("blue tint", (2 * 0.598 * 0.15 - 1, 2 * 0.598 * 0.3 - 1, 2 * 0.598 * 0.9 - 1), (1, 1, 1)),
    ],
)
def test_colours(
    words: str, inside: tuple[float, ...], ground: tuple[float, ...], rgba: Tensor
) -> None:
    modified = MODIFIERS[words](rgba)[0]
    torch.testing.assert_close(modified[:, 16, 16], torch.tensor(inside).float(), atol=2e-3, rtol=0)
    torch.testing.assert_close(modified[:, 1, 1], torch.tensor(ground).float(), atol=2e-3, rtol=0)


def test_shapes(rgba: Tensor) -> None:
    plain = on_white(rgba)
    assert torch.equal(MODIFIERS["upside down"](rgba), plain.rot90(2, (2, 3)))
    pixels = MODIFIERS["pixel art"](rgba)
    assert len(pixels[1, 0].unique()) <= 36  # Six squares across 32 pixels.
    shrunk = MODIFIERS["small"](rgba)
    drawn = [int((picture < 0.9).any(dim=0).sum()) for picture in (plain[0], shrunk[0])]
    assert drawn[1] == pytest.approx(drawn[0] / 4, rel=0.15)


def test_brightness_is_rec_601() -> None:
    colours = torch.tensor([[1.0, -1, -1], [-1, 1, -1], [-1, -1, 1], [1, 1, 1]])
    expected = torch.tensor([0.299, 0.587, 0.114, 1.0])
    torch.testing.assert_close(brightness(colours[:, :, None, None]).flatten(), expected)
