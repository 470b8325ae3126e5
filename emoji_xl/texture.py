"""Style by texture: what small patches of a picture look like, wherever they lie.

A network that sees whole things learns by heart which picture is which; one that sees 21 pixels at
a time and keeps only mean and deviation over the thing has to learn lines, shading and edges (a bag
of local features, https://arxiv.org/abs/1904.00760).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emoji_xl.palette import is_drawn

WIDTH = 32
DROPOUT = 0.3


class Texture(nn.Module):
    """Logits of styles from pictures' patches of 21 x 21 pixels."""

    def __init__(self, styles: int) -> None:
        super().__init__()
        self.patches = nn.Sequential(
            *_layer(3, WIDTH, kernel=3),
            *_layer(WIDTH, WIDTH, kernel=3, stride=2),
            *_layer(WIDTH, 2 * WIDTH, kernel=3),
            *_layer(2 * WIDTH, 3 * WIDTH, kernel=3, stride=2),
            *_layer(3 * WIDTH, 3 * WIDTH, kernel=3),
            *_layer(3 * WIDTH, 3 * WIDTH, kernel=1),
        )
        self.dropout = nn.Dropout(DROPOUT)
        self.head = nn.Linear(6 * WIDTH, styles)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, styles) of images (N, 3, H, W) in [-1, 1]; patches without drawing are out."""
        features = self.patches(images)
        drawn = F.adaptive_max_pool2d(is_drawn(images).float(), features.shape[-2:])
        total = drawn.sum(dim=(2, 3)).clamp(min=1)
        mean = (features * drawn).sum(dim=(2, 3)) / total
        square = (features.square() * drawn).sum(dim=(2, 3)) / total
        deviation = (square - mean.square()).clamp(min=1e-6).sqrt()
        logits: Tensor = self.head(self.dropout(torch.cat([mean, deviation], dim=1)))
        return logits


def cropped(images: Tensor) -> Tensor:
    """A batch's three quarters at one place, turned by quarters and mirrored at random."""
    side = images.shape[-1]
    size = side * 3 // 4
    top, left = (int(at) for at in torch.randint(side - size + 1, (2,)))
    part = images[:, :, top : top + size, left : left + size]
    part = part.rot90(int(torch.randint(4, ())), (2, 3))
    return part.flip(3) if int(torch.randint(2, ())) else part


def _layer(channels: int, out: int, *, kernel: int, stride: int = 1) -> tuple[nn.Module, ...]:
    convolution = nn.Conv2d(channels, out, kernel, stride, bias=False)
    return convolution, nn.BatchNorm2d(out), nn.ReLU()
