"""Textures: what a patch can see, what the background adds, what is learned."""

import torch
import torch.nn.functional as F

from emoji_xl.texture import Texture, cropped


def test_a_feature_sees_21_pixels_and_no_more() -> None:
    torch.manual_seed(0)
    texture = Texture(3).eval()
    images = torch.randn(1, 3, 64, 64, requires_grad=True)
    features = texture.patches(images)
    features[0, :, 4, 4].sum().backward()
    assert images.grad is not None
    seen = images.grad.abs().sum(dim=(0, 1))
    rows = seen.sum(dim=1).nonzero().flatten()
    assert int(rows[-1] - rows[0]) + 1 <= 21
    assert int(rows[-1] - rows[0]) + 1 >= 15  # Some of a window's edge may be dead.


def test_empty_ground_adds_nothing() -> None:
    torch.manual_seed(0)
    texture = Texture(3).eval()
    small = torch.ones(1, 3, 96, 96)
    small[:, :, 36:60, 36:60] = torch.rand(1, 3, 24, 24) * 1.6 - 1
    large = F.pad(small, (16, 16, 16, 16), value=1.0)
    torch.testing.assert_close(texture(large), texture(small), atol=2e-2, rtol=2e-2)
    assert texture(torch.ones(2, 3, 96, 96)).isfinite().all()


def test_crops_are_parts_of_the_picture() -> None:
    torch.manual_seed(0)
    images = torch.arange(2 * 3 * 16 * 16.0).view(2, 3, 16, 16)
    for _ in range(10):
        part = cropped(images)
        assert part.shape == (2, 3, 12, 12)
        assert torch.isin(part, images).all()
        assert part.unique().numel() == part.numel()


def test_a_texture_learns_lines_from_areas() -> None:
    torch.manual_seed(0)
    striped = torch.ones(1, 3, 48, 48)
    striped[:, :, :, ::4] = -1
    images = torch.cat([striped, -torch.ones(1, 3, 48, 48)])
    styles = torch.tensor([0, 1])
    texture = Texture(2)
    optimizer = torch.optim.AdamW(texture.parameters(), lr=3e-3)
    for _ in range(20):
        loss = F.cross_entropy(texture(images), styles)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss) < 0.3
    assert (texture(images.roll(2, 3)).argmax(1) == styles).all()
