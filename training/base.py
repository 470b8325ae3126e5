"""The base model that runs work on: loaded once, frozen, and after each what it was before."""

import torch
from diffusers import StableDiffusionXLPipeline
from torch import nn

from shira_diffusion.fingerprint import fingerprint
from shira_diffusion.pipeline import load_base


class Base:
    """A pipeline, and the fingerprints of its components as they were when it came.

    None of its weights asks for a gradient: a run makes of them what it trains, and undoes it.
    """

    def __init__(self, pipe: StableDiffusionXLPipeline) -> None:
        self.pipe = pipe
        self._marks: dict[str, str] = {}
        for component in pipe.components.values():
            if isinstance(component, nn.Module):
                component.requires_grad_(False)

    @classmethod
    def load(cls, source: str, device: torch.device | str, dtype: torch.dtype) -> "Base":
        """Load what `load_base` knows; raises as it does."""
        pipe = load_base(source, device=device, dtype=dtype)
        pipe.set_progress_bar_config(disable=True)
        return cls(pipe)

    def mark(self, component: str) -> str:
        """Return a component's fingerprint, taken when it is first asked for, untrained."""
        if component not in self._marks:
            self._marks[component] = fingerprint(getattr(self.pipe, component))
        return self._marks[component]
