"""The node: a SHiRA adapter onto a MODEL and, if it changes the text encoders, a CLIP."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import comfy.lora
import folder_paths

from .native_file import Change, SparseFile, read
from .sparse_patch import SparsePatch

FOLDER = "shira"
_STRENGTH = {"default": 1.0, "min": -10.0, "max": 10.0, "step": 0.01}
# How ComfyUI's own table of LoRA keys names the layers of each of diffusers' components.
_PREFIXES = {
    "unet": "lora_unet_",
    "text_encoder": "lora_te1_",
    "text_encoder_2": "lora_te2_",
}
_WEIGHT = ".weight"


def _register_folder() -> None:
    """Files lie in `models/shira`, and wherever extra_model_paths.yaml says `shira:`."""
    folder = Path(folder_paths.models_dir) / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    known, _ = folder_paths.folder_names_and_paths.get(FOLDER, ([], set()))
    places = [*known, *([str(folder)] if str(folder) not in known else [])]
    folder_paths.folder_names_and_paths[FOLDER] = (places, {".safetensors"})


_register_folder()


class LoadShira:
    """Add an adapter at a strength; several in a row add up, as LoRAs do."""

    CATEGORY = "loaders"
    DESCRIPTION = (
        "Loads a SHiRA adapter (SHiRA Studio's native file) from models/shira. It costs nothing "
        "while sampling and can be mixed with LoRAs. trigger_words goes into the prompt."
    )
    RETURN_TYPES = ("MODEL", "CLIP", "STRING")
    RETURN_NAMES = ("MODEL", "CLIP", "trigger_words")
    FUNCTION = "load"

    def __init__(self) -> None:
        self._last: tuple[tuple[Path, int], SparseFile] | None = None

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        """What the node shows; called whenever the page is loaded."""
        return {
            "required": {
                "model": ("MODEL",),
                "shira_name": (folder_paths.get_filename_list(FOLDER),),
                "strength_model": ("FLOAT", _STRENGTH),
                "strength_clip": ("FLOAT", _STRENGTH),
            },
            "optional": {"clip": ("CLIP",)},
        }

    @classmethod
    def IS_CHANGED(cls, shira_name: str, **_inputs: object) -> int:  # noqa: N802
        """A file that was overwritten is loaded again."""
        return Path(folder_paths.get_full_path_or_raise(FOLDER, shira_name)).stat().st_mtime_ns

    def load(
        self,
        model: Any,
        shira_name: str,
        strength_model: float,
        strength_clip: float,
        clip: Any = None,
    ) -> tuple[Any, Any, str]:
        """The patched model and CLIP, and the trigger words; what came in stays what it is."""
        adapter = self._read(shira_name)
        unet = {name: one for name, one in adapter.changes.items() if name.startswith("unet.")}
        text = {name: one for name, one in adapter.changes.items() if name not in unet}
        if text and clip is None:
            logging.warning("%s also changes the text encoders: connect clip", shira_name)
        if unet and strength_model:
            keys = comfy.lora.model_lora_keys_unet(model.model, {})
            patches = _patches(adapter, unet, keys, model.model.state_dict())
            model = _patched(model, patches, strength_model)
        if text and clip is not None and strength_clip:
            keys = comfy.lora.model_lora_keys_clip(clip.cond_stage_model, {})
            patches = _patches(adapter, text, keys, clip.cond_stage_model.state_dict())
            clip = _patched(clip, patches, strength_clip)
        return model, clip, ", ".join(adapter.trigger_words)

    def _read(self, shira_name: str) -> SparseFile:
        path = Path(folder_paths.get_full_path_or_raise(FOLDER, shira_name))
        version = (path, path.stat().st_mtime_ns)
        if self._last is None or self._last[0] != version:
            self._last = (version, read(path))
        return self._last[1]


def _patched(target: Any, patches: dict[str, SparsePatch], strength: float) -> Any:
    clone = target.clone()
    clone.add_patches(patches, strength)
    return clone


def _patches(
    adapter: SparseFile,
    changes: dict[str, Change],
    keys: dict[str, Any],
    weights: dict[str, Any],
) -> dict[str, SparsePatch]:
    """A patch for each weight by ComfyUI's name of it; `ValueError` if the model is another one."""
    patches = {}
    for name, change in changes.items():
        # For models that join layers, the table has a part of a weight: not for SDXL's.
        key = keys.get(_lora_key(name))
        found = tuple(weights[key].shape) if isinstance(key, str) and key in weights else None
        if not isinstance(key, str) or found != change.shape:
            state = "lacks it" if found is None else f"has it as {found}"
            raise ValueError(
                f"The adapter {adapter.name!r} does not fit this model: it changes {name} "
                f"{change.shape}, the model {state}. It was made for "
                f"{adapter.base_model or 'an unknown base'}; load a model of that kind."
            )
        patches[key] = SparsePatch({name}, (change.indices, change.values))
    return patches


def _lora_key(name: str) -> str:
    """`unet.mid_block...to_q.weight` as `lora_unet_mid_block_..._to_q`; "" for no weight."""
    component, _, path = name.partition(".")
    prefix = _PREFIXES.get(component)
    if prefix is None or not path.endswith(_WEIGHT):
        return ""
    return prefix + path.removesuffix(_WEIGHT).replace(".", "_")


NODE_CLASS_MAPPINGS = {"LoadShira": LoadShira}
NODE_DISPLAY_NAME_MAPPINGS = {"LoadShira": "Load SHiRA"}
