"""Sparse high rank adapters (arXiv 2406.13175) for diffusion models: train, store, switch, fuse."""

from shira_diffusion import fuse, masks
from shira_diffusion.adapter import Adapter, AdapterInfo
from shira_diffusion.delta import SparseDelta

__all__ = ["Adapter", "AdapterInfo", "SparseDelta", "fuse", "masks"]
