"""A model as its components and the names of their weights.

An adapter's names carry the component, as diffusers' do: `unet.down_blocks...to_q.weight`. The
name of one bare module has no component.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from shira_diffusion.errors import MismatchError, nearest

# Parts of a pipeline that no adapter of ours changes.
_LEFT_OUT = frozenset({"vae", "safety_checker", "image_encoder"})
_TEXT_ENCODERS = ("text_encoder", "text_encoder_2")
_INNER = "text_model."
_INNER_PARTS = ("embeddings.", "encoder.", "final_layer_norm.")


def component_modules(target: Any) -> dict[str, nn.Module]:
    """The modules that adapters may change, by component.

    `target` is a diffusers pipeline (anything with `.components`; its VAE is left out), a mapping
    of modules, or one module, whose component is "".
    """
    if isinstance(target, nn.Module):
        return {"": unwrapped(target)}
    parts = target if isinstance(target, Mapping) else getattr(target, "components", None)
    if not isinstance(parts, Mapping):
        raise MismatchError(
            f"a {type(target).__name__} is neither a pipeline, nor a mapping of modules, nor a "
            "torch module"
        )
    return {
        name: unwrapped(part)
        for name, part in parts.items()
        if isinstance(part, nn.Module) and name not in _LEFT_OUT
    }


def component_of(name: str, components: Mapping[str, object]) -> str:
    """Which of `components` a weight's name belongs to; "" when it names none of them."""
    head = name.partition(".")[0]
    return head if head in components else ""


def canonical_name(name: str) -> str:
    """The name under which adapters store a weight.

    Since transformers 5.6 CLIPTextModel has no `text_model.` in its names, while older versions
    and other programs have it; stored names always do.
    """
    component, _, rest = name.partition(".")
    if component in _TEXT_ENCODERS and rest.startswith(_INNER_PARTS):
        return f"{component}.{_INNER}{rest}"
    return name


def plain_name(name: str) -> str:
    """A weight's name within its module, without the prefix that depends on the version."""
    return name.removeprefix(_INNER)


class Weights:
    """The weights of a model by stored name, looked up live: modules may move or be replaced."""

    def __init__(self, target: Any):
        self.modules = component_modules(target)
        if not self.modules:
            raise MismatchError("there is no module to adapt in this target")
        first: dict[int, str] = {}
        self._slots: dict[str, str] = {}
        for component, module in self.modules.items():
            for name, weight in module.named_parameters(remove_duplicate=False):
                full = f"{component}.{name}" if component else name
                _require_data(full, weight)
                self._slots[canonical_name(full)] = first.setdefault(id(weight), full)

    def slot(self, name: str) -> str:
        """The one name of the weight that `name` means: tied weights share a slot."""
        found = self._slots.get(canonical_name(name))
        if found is None:
            raise MismatchError(
                f"this model has no weight {name!r} ({nearest(name, self._slots)}); "
                "the adapter was made for another architecture"
            )
        return found

    def live(self, slot: str) -> torch.Tensor:
        """The parameter that stands at `slot` now; `MismatchError` when its data are elsewhere."""
        component = component_of(slot, self.modules)
        path = slot[len(component) + 1 :] if component else slot
        try:
            weight = self.modules[component].get_parameter(path)
        except (AttributeError, KeyError) as error:
            raise MismatchError(
                f"the weight {slot!r} has left the model since the switcher was made; "
                "make a new AdapterSwitcher"
            ) from error
        _require_data(slot, weight)
        return weight


class Links:
    """The weights at `slots`, and whether the model still has these very parameters there.

    A module keeps its parameters when it is moved; what is replaced in it is not noticed by them.
    So every step on the way from the model to a weight is looked at again, each only once.
    """

    def __init__(self, weights: Weights, slots: Sequence[str]):
        self.weights = tuple(weights.live(slot) for slot in slots)
        links: dict[tuple[int, str], tuple[dict[str, Any], str, object]] = {}
        for slot in slots:
            component = component_of(slot, weights.modules)
            module = weights.modules[component]
            *path, last = (slot[len(component) + 1 :] if component else slot).split(".")
            for name in path:
                child = module.get_submodule(name)
                links[id(module), name] = (module._modules, name, child)
                module = child
            links[id(module), last] = (module._parameters, last, module.get_parameter(last))
        self._boxes = [box for box, _, _ in links.values()]
        self._names = [name for _, name, _ in links.values()]
        self._contents = [content for _, _, content in links.values()]

    def hold(self) -> bool:
        """Whether nothing on the way to the weights was replaced or removed."""
        # SDXL's attention has a thousand such steps; maps in C take half the time of a loop.
        found = map(dict.get, self._boxes, self._names)
        return all(map(operator.is_, found, self._contents))


def unwrapped(module: nn.Module) -> nn.Module:
    """The module inside torch.compile's wrapper, whose weights it shares."""
    inner = getattr(module, "_orig_mod", module)
    return inner if isinstance(inner, nn.Module) else module


def _require_data(name: str, weight: torch.Tensor) -> None:
    if weight.is_meta:
        raise MismatchError(
            f"the weight {name!r} is offloaded (on 'meta'), so nothing can be written to it; use "
            "enable_model_cpu_offload() or keep the model on one device instead of "
            "enable_sequential_cpu_offload()"
        )
    if weight.is_inference():
        raise MismatchError(
            f"the weight {name!r} was made under torch.inference_mode(), which forbids writing to "
            "it; load the model outside of it"
        )
