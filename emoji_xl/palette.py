"""Style by colour: a linear reading of which colours a picture has.

Emoji sets draw with palettes of their own, so colours tell styles apart where a convolutional
network only remembers which pictures it saw (docs/log.md has both figures).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

GROUND = 0.02
"""A pixel whose darkest channel is this close to white is background."""
FIT_STEPS = 300
FIT_BATCH = 1024


def is_drawn(images: Tensor) -> Tensor:
    """Whether pixels of images (N, 3, H, W) in [-1, 1] are not background: bool (N, 1, H, W)."""
    return (1 - images.clamp(-1, 1).amin(dim=1, keepdim=True)) / 2 > GROUND


def colour_shares(images: Tensor, bins: int) -> Tensor:
    """Square roots of the shares of `bins`^3 colours in images (N, 3, H, W) in [-1, 1].

    Each pixel that is not background counts by trilinear weights in the eight bins around it;
    returns (N, bins^3).
    """
    pixels = images.flatten(2).clamp(-1, 1)
    place = (pixels + 1) / 2 * (bins - 1)
    low = place.floor().clamp(max=bins - 2)
    above = place - low
    low = low.long()
    drawn = is_drawn(images).flatten(1).float()
    shares = torch.zeros(len(images), bins**3, device=images.device)
    for corner in range(8):
        steps = [corner >> channel & 1 for channel in range(3)]
        index, weight = torch.zeros_like(low[:, 0]), drawn
        for channel, step in enumerate(steps):
            index = index * bins + low[:, channel] + step
            weight = weight * (above[:, channel] if step else 1 - above[:, channel])
        shares.scatter_add_(1, index, weight)
    return (shares / shares.sum(dim=1, keepdim=True).clamp(min=1e-6)).sqrt()


class Palette(nn.Module):
    """Logits of styles from the colours of pictures."""

    def __init__(self, bins: int, styles: int) -> None:
        super().__init__()
        self.bins = bins
        self.reading = nn.Linear(bins**3, styles)
        nn.init.zeros_(self.reading.weight)
        nn.init.zeros_(self.reading.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, styles) of images (N, 3, H, W) in [-1, 1]."""
        logits: Tensor = self.reading(colour_shares(images, self.bins))
        return logits


def fit_palette(palette: Palette, images: Tensor, styles: Tensor, *, batch: int = 128) -> None:
    """Fit a palette to images (N, 3, H, W) of known styles (N,), in place."""
    shares = torch.cat([colour_shares(part.float(), palette.bins) for part in images.split(batch)])
    palette.requires_grad_()
    optimizer = torch.optim.AdamW(palette.parameters(), lr=1e-2, weight_decay=0.3)
    draws = torch.Generator().manual_seed(0)
    for _ in range(FIT_STEPS):
        rows = torch.randint(len(shares), (FIT_BATCH,), generator=draws).to(shares.device)
        loss = F.cross_entropy(palette.reading(shares[rows]), styles[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    palette.requires_grad_(False)
