"""Sparse high rank adapters (arXiv 2406.13175) for diffusion models: train, store, switch, fuse."""

from shira_diffusion import fuse, masks, metrics, schedule
from shira_diffusion.adapter import Adapter, AdapterInfo
from shira_diffusion.delta import SparseDelta
from shira_diffusion.residency import Residency
from shira_diffusion.switch import AdapterSwitcher
from shira_diffusion.tune import SparseTuner

__all__ = [
    "Adapter",
    "AdapterInfo",
    "AdapterSwitcher",
    "Residency",
    "SparseDelta",
    "SparseTuner",
    "fuse",
    "masks",
    "metrics",
    "schedule",
]
