"""As much of ComfyUI as its custom nodes and weight patches see, written anew from its interface.

Modules `comfy.lora`, `comfy.weight_adapter.base` and `folder_paths`, and a `ModelPatcher` that
clones, collects patches, and patches weights as ComfyUI's does: each in fp32, then rounded to its
own dtype, the original kept and put back; or, in low-VRAM mode, on a copy in the weight's dtype.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

NODE = Path(__file__).parent.parent / "integrations" / "comfyui"
UNET, CLIP_L, CLIP_G = "diffusion_model.", "clip_l.transformer.", "clip_g.transformer."


class WeightAdapterBase:
    """What ComfyUI tells a weight adapter by."""

    name: str
    loaded_keys: set[str]
    weights: Any


def lora_keys_unet(model: nn.Module, key_map: dict[str, str]) -> dict[str, str]:
    """`lora_unet_<name with _>` to the state dict's name; here that is diffusers' name."""
    for name in model.state_dict():
        if name.startswith(UNET) and name.endswith(".weight"):
            flat = name.removeprefix(UNET).removesuffix(".weight").replace(".", "_")
            key_map[f"lora_unet_{flat}"] = name
    return key_map


def lora_keys_clip(model: nn.Module, key_map: dict[str, str]) -> dict[str, str]:
    """The same for the text encoders, `lora_te1_` and `lora_te2_`."""
    for name in model.state_dict():
        for start, prefix in ((CLIP_L, "lora_te1_"), (CLIP_G, "lora_te2_")):
            if name.startswith(start) and name.endswith(".weight"):
                flat = name.removeprefix(start).removesuffix(".weight").replace(".", "_")
                key_map[prefix + flat] = name
    return key_map


def calculate_weight(patches: list[Any], weight: Tensor, key: str, dtype: torch.dtype) -> Tensor:
    """All patches of one weight, one after another, on `weight` itself."""
    for strength, adapter, strength_model, offset, function in patches:
        assert isinstance(adapter, WeightAdapterBase)
        assert (strength_model, offset, function) == (1.0, None, None)
        arguments = (weight, key, strength, strength_model, offset, lambda one: one, dtype, None)
        weight = adapter.calculate_weight(*arguments)
    return weight


class ModelPatcher:
    """A model and the patches that are put on it when it is loaded."""

    def __init__(self, model: nn.Module):
        self.model, self.patches, self.backup = model, {}, {}

    def clone(self) -> ModelPatcher:
        other = ModelPatcher(self.model)
        other.patches = {key: list(one) for key, one in self.patches.items()}
        other.backup = self.backup
        return other

    def add_patches(self, patches: dict[str, Any], strength: float = 1.0) -> list[str]:
        known = self.model.state_dict().keys() & patches.keys()
        for key in known:
            self.patches.setdefault(key, []).append((strength, patches[key], 1.0, None, None))
        return list(known)

    def patch_model(self) -> None:
        for key, patches in self.patches.items():
            weight = self.model.get_parameter(key)
            self.backup[key] = weight.data
            whole = weight.data.to(torch.float32, copy=True)
            weight.data = calculate_weight(patches, whole, key, torch.float32).to(weight.dtype)

    def unpatch_model(self) -> None:
        for key, weight in self.backup.items():
            self.model.get_parameter(key).data = weight
        self.backup.clear()

    def streamed(self, key: str) -> Tensor:
        """A weight as a layer gets it in low-VRAM mode, its patches moved as ComfyUI moves them."""
        moved = [
            (
                strength,
                type(one)(one.loaded_keys, tuple(part.clone() for part in one.weights)),
                *rest,
            )
            for strength, one, *rest in self.patches[key]
        ]
        weight = self.model.get_parameter(key)
        return calculate_weight(moved, weight.data.clone(), key, weight.dtype)


class Clip:
    """A CLIP input: a patcher of both text encoders."""

    def __init__(self, model: nn.Module):
        self.cond_stage_model = model
        self.patcher = ModelPatcher(model)

    def clone(self) -> Clip:
        other = Clip(self.cond_stage_model)
        other.patcher = self.patcher.clone()
        return other

    def add_patches(self, patches: dict[str, Any], strength: float = 1.0) -> list[str]:
        return self.patcher.add_patches(patches, strength)


class FolderPaths(ModuleType):
    """ComfyUI's registry of model folders."""

    def __init__(self, models_dir: Path):
        super().__init__("folder_paths")
        self.models_dir = str(models_dir)
        self.folder_names_and_paths: dict[str, tuple[list[str], set[str]]] = {}

    def get_filename_list(self, kind: str) -> list[str]:
        folders, endings = self.folder_names_and_paths[kind]
        files = [file for folder in folders for file in Path(folder).iterdir()]
        return sorted(file.name for file in files if file.suffix in endings)

    def get_full_path_or_raise(self, kind: str, name: str) -> str:
        for folder in self.folder_names_and_paths[kind][0]:
            if (Path(folder) / name).is_file():
                return str(Path(folder) / name)
        raise FileNotFoundError(name)


@contextmanager
def installed(models_dir: Path) -> Iterator[ModuleType]:
    """The node, loaded from its folder as ComfyUI loads custom nodes, which have no fixed name."""
    comfy, lora = ModuleType("comfy"), ModuleType("comfy.lora")
    lora.model_lora_keys_unet, lora.model_lora_keys_clip = lora_keys_unet, lora_keys_clip
    adapters, base = ModuleType("comfy.weight_adapter"), ModuleType("comfy.weight_adapter.base")
    base.WeightAdapterBase = WeightAdapterBase
    comfy.lora, comfy.weight_adapter, adapters.base = lora, adapters, base
    stand_ins = {one.__name__: one for one in (comfy, lora, adapters, base)}
    stand_ins["folder_paths"] = FolderPaths(models_dir)
    before = set(sys.modules)
    sys.modules.update(stand_ins)
    try:
        spec = importlib.util.spec_from_file_location("shira_node", NODE / "__init__.py")
        assert spec is not None
        assert spec.loader is not None
        package = importlib.util.module_from_spec(spec)
        sys.modules["shira_node"] = package
        spec.loader.exec_module(package)
        yield package
    finally:
        for name in set(sys.modules) - before:
            del sys.modules[name]
