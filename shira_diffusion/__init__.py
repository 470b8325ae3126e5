"""Sparse high rank adapters (arXiv 2406.13175) for diffusion models: train, store, switch, fuse."""

from shira_diffusion import fuse, masks, metrics
from shira_diffusion.adapter import Adapter, AdapterInfo
from shira_diffusion.delta import SparseDelta
from shira_diffusion.switch import AdapterSwitcher
from shira_diffusion.tune import SparseTuner

__all__ = [
    "Adapter",
    "AdapterInfo",
    "AdapterSwitcher",
    "SparseDelta",
    "SparseTuner",
    "fuse",
    "masks",
    "metrics",
]
