"""Make one adapter out of several, or a sparser one, on the sparse changes themselves."""

from __future__ import annotations

from shira_diffusion.fuse.collisions import mean, strongest, weighted_sum
from shira_diffusion.fuse.thin import dare, prune
from shira_diffusion.fuse.ties import ties

__all__ = ["dare", "mean", "prune", "strongest", "ties", "weighted_sum"]
