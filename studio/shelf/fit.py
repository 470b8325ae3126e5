"""Does an adapter fit the base in use? Told from names and shapes, without touching the model."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from diffusers import StableDiffusionXLPipeline

from shira_diffusion import Adapter
from shira_diffusion.components import canonical_name, component_modules


@dataclass(frozen=True)
class BaseWeights:
    """The shapes of a base's weights by the names that adapters use; empty ones fit anything."""

    base: str
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @classmethod
    def of(cls, pipe: StableDiffusionXLPipeline, base: str) -> "BaseWeights":
        """Those of a loaded base."""
        shapes = {
            canonical_name(f"{part}.{name}"): tuple(weight.shape)
            for part, module in component_modules(pipe).items()
            for name, weight in module.named_parameters()
        }
        return cls(base, shapes)

    def objection(self, adapter: Adapter) -> str:
        """What does not fit, in words; nothing when all does."""
        if not self.shapes:
            return ""
        for name, delta in adapter.deltas.items():
            shape = self.shapes.get(name)
            if shape is None:
                return f"it changes the weight {name!r}, which {self.base} does not have"
            if shape != tuple(delta.shape):
                size = " x ".join(map(str, delta.shape))
                ours = " x ".join(map(str, shape))
                return f"its {name!r} is {size}, that of {self.base} is {ours}"
        return ""
