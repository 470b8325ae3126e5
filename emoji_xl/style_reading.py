"""Style by colours and shading, read by a small network.

Counts of colours and of their steps tell styles apart where a convolutional network only remembers
which pictures it saw (docs/log.md has both figures).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emoji_xl.palette import colour_shares
from emoji_xl.shading import FEATURES, shading_shares

HIDDEN = 128
FIT_EPOCHS = 40
LEAST_STEPS = 200
FIT_BATCH = 512
FIT_RATE = 2e-3


class StyleReading(nn.Module):
    """Logits of styles from the colours and the shading of pictures."""

    def __init__(self, bins: int, styles: int) -> None:
        super().__init__()
        self.bins = bins
        self.layers = nn.Sequential(
            nn.Dropout(0.1),
            nn.Linear(bins**3 + FEATURES, HIDDEN),
            nn.GELU(),
            nn.Dropout(0.5),
            nn.Linear(HIDDEN, styles),
        )

    def features(self, images: Tensor) -> Tensor:
        """What the styles are read from, (N, bins^3 + shading)."""
        return torch.cat([colour_shares(images, self.bins), shading_shares(images)], dim=1)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, styles) of images (N, 3, H, W) in [-1, 1]."""
        logits: Tensor = self.layers(self.features(images))
        return logits


def fit_style(reading: StyleReading, images: Tensor, styles: Tensor, *, batch: int = 128) -> None:
    """Fit a reading to images (N, 3, H, W) of known styles (N,), in place."""
    features = torch.cat([reading.features(part.float()) for part in images.split(batch)])
    reading.requires_grad_().train()
    optimizer = torch.optim.AdamW(reading.parameters(), lr=FIT_RATE, weight_decay=0.3)
    draws = torch.Generator().manual_seed(0)
    for _ in range(max(LEAST_STEPS, FIT_EPOCHS * len(features) // FIT_BATCH)):
        rows = torch.randint(len(features), (FIT_BATCH,), generator=draws).to(features.device)
        logits = reading.layers(features[rows])
        loss = F.cross_entropy(logits, styles[rows], label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    reading.requires_grad_(False).eval()
