"""PEFT's SHiRA: the folder that `PeftModel.save_pretrained` writes and `from_pretrained` reads.

`adapter_model.safetensors` holds for each layer `base_model.model.<layer>.shira_weight` (nnz,) and
`.shira_indices` (2, nnz), rows and then columns, int32 or on Windows float32; 12 bytes an entry.
`adapter_config.json` has one r for all layers, and nnz = r * (rows + columns) in each.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shira_diffusion.adapter import Adapter, AdapterInfo, Delta
from shira_diffusion.delta import SparseDelta, index_dtype
from shira_diffusion.errors import FormatError, ShiraError
from shira_diffusion.formats import container, metadata, names
from shira_diffusion.formats.sides import Shapes, Sides, stored_shapes

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_VALUES, _INDICES = ".shira_weight", ".shira_indices"
_SHAPES_KEY = "shira.shapes"


@dataclass(frozen=True)
class Padding:
    """What PEFT's rule of one r for all layers costs: entries of value 0 that are added."""

    r: int
    entries: int
    added: int

    @property
    def share(self) -> float:
        """The added entries over the adapter's own."""
        return self.added / self.entries if self.entries else 0.0


def is_shira(keys: frozenset[str]) -> bool:
    """Whether tensors of these names are PEFT's SHiRA."""
    return any(key.endswith(_INDICES) for key in keys)


def read_config(folder: Path) -> Mapping[str, Any]:
    """PEFT's settings in `folder`, none without their file; `FormatError` for broken ones."""
    path = folder / CONFIG
    if not path.is_file():
        return {}
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise FormatError(f"{path}: it cannot be read ({error}); copy the folder again") from error
    settings = metadata.parse_json(text, str(path))
    if not isinstance(settings, dict):
        raise FormatError(f"{path}: it is no JSON object; copy the folder again")
    return settings


def load(path: str | Path, *, shapes: Shapes | None = None) -> Adapter:
    """Read PEFT's folder, or the safetensors file in it.

    Names get the component that they show ("unet."); those of other models stay bare. The file
    does not tell a weight's shape: it is taken from `shapes` (by name, as the base has them), from
    what we wrote, or else worked out from rows + columns = nnz / r and the largest indices.
    Entries of value 0 are dropped, as they change nothing. Raises `FormatError`.
    """
    path = Path(path)
    folder = path if path.is_dir() else path.parent
    file = container.read(path / WEIGHTS if path.is_dir() else path)
    try:
        settings = read_config(folder)
        _check_settings(settings)
        layers = _layers(file.tensors)
        known = {**stored_shapes(file.metadata.get(_SHAPES_KEY)), **(shapes or {})}
        places = {name: coordinates for name, (_, coordinates) in layers.items()}
        sides = Sides(places, known, settings.get("r"))
        deltas = {name: _delta(name, *layers[name], sides.shape(name)) for name in layers}
        info = metadata.decode(file.metadata) or _foreign_info(folder, settings, file.metadata)
        return Adapter(deltas, info)
    except ShiraError as error:
        raise FormatError(f"{path}: {error}; save or download the adapter again") from error


def save(adapter: Adapter, path: str | Path, *, component: str | None = None) -> Padding:
    """Write `adapter` into the folder `path`, for `PeftModel.from_pretrained(module, path)`.

    One folder serves one module: of an adapter of several components, `component` says which.
    PEFT needs nnz = r * (rows + columns) in every layer, so unused positions are padded with zeros
    up to the smallest such r; the `Padding` says how many. Text encoders get the module's names in
    transformers from 5.6 on. Raises `FormatError` for what PEFT's SHiRA cannot hold, and then
    writes nothing.
    """
    chosen = _of_one_component(adapter, component)
    deltas = {name: _sparse(name, delta) for name, delta in chosen.deltas.items()}
    r = _smallest_r(deltas)
    tensors: dict[str, Tensor] = {}
    layers = []
    for name, delta in deltas.items():
        layer = _module_name(name)
        layers.append(layer)
        values, coordinates = _padded(delta, r)
        tensors[names.PEFT + layer + _VALUES] = values
        tensors[names.PEFT + layer + _INDICES] = coordinates
    shapes = {name: delta.shape for name, delta in deltas.items()}
    stated = {"format": "pt", _SHAPES_KEY: json.dumps(shapes), **metadata.encode(chosen.info)}
    container.write(Path(path) / WEIGHTS, tensors, stated)
    container.write_text(Path(path) / CONFIG, _config(chosen.info, layers, r))
    own = sum(delta.nnz for delta in deltas.values())
    return Padding(r, own, sum(r * sum(delta.shape) for delta in deltas.values()) - own)


def _check_settings(settings: Mapping[str, Any]) -> None:
    kind = settings.get("peft_type", "SHIRA")
    if kind != "SHIRA":
        raise FormatError(f"its {CONFIG} says that it is {kind!r}, not a SHiRA")
    if settings.get("fan_in_fan_out"):
        raise FormatError(f"its {CONFIG} has fan_in_fan_out, which is not supported")


def _layers(tensors: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """Values (nnz,) and coordinates (2, nnz) int64 of every weight, by our name for it."""
    found: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        for ending in (_VALUES, _INDICES):
            if key.endswith(ending):
                name = names.canonical_or_bare(key.removesuffix(ending)) + ".weight"
                if ending in found.setdefault(name, {}):
                    raise FormatError(f"{key!r} names the weight {name!r} a second time")
                found[name][ending] = tensor
                break
        else:
            raise FormatError(f"{key!r} is not part of a SHiRA")
    if not found:
        raise FormatError("it holds no layers")
    return {name: _checked(name, parts) for name, parts in found.items()}


def _checked(name: str, parts: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    values, stored = parts.get(_VALUES), parts.get(_INDICES)
    if values is None or stored is None:
        raise FormatError(f"the layer of {name!r} lacks its values or its indices")
    if values.dim() != 1 or not values.is_floating_point():
        raise FormatError(f"the values of {name!r} are not flat numbers")
    if stored.shape != (2, values.numel()):
        raise FormatError(
            f"the indices of {name!r} are {tuple(stored.shape)}, not (2, {values.numel()})"
        )
    if stored.dtype not in (torch.int32, torch.int64, torch.float32):
        raise FormatError(f"the indices of {name!r} are {stored.dtype}, neither int32 nor float32")
    # NaN and infinity become some integer, which then differs from what was stored.
    coordinates = stored.long()
    if stored.is_floating_point() and not torch.equal(coordinates.to(stored.dtype), stored):
        raise FormatError(f"the indices of {name!r} are not whole numbers")
    return values, coordinates


def _delta(name: str, values: Tensor, coordinates: Tensor, shape: tuple[int, ...]) -> SparseDelta:
    rows, columns = shape
    flat = coordinates[0] * columns + coordinates[1]
    order = flat.argsort()
    flat, values = flat[order].to(index_dtype(rows * columns)), values[order]
    try:
        # Checked as a whole first: NaN, bounds and repeated entries are faults even where 0.
        whole = SparseDelta(flat, values.float(), shape)
    except ShiraError as error:
        raise FormatError(f"the weight {name!r}: {error}") from error
    kept = whole.values != 0
    return SparseDelta(flat[kept], values[kept], shape)


def _of_one_component(adapter: Adapter, component: str | None) -> Adapter:
    heads = {_component(name) for name in adapter.deltas}
    if component is None and len(heads) > 1:
        raise FormatError(
            f"PEFT's folder serves one module, but {adapter.info.name!r} changes "
            f"{', '.join(sorted(heads))}; save each with component=..."
        )
    wanted = component if component is not None else next(iter(heads), "")
    deltas = {name: one for name, one in adapter.deltas.items() if _component(name) == wanted}
    if not deltas:
        raise FormatError(
            f"{adapter.info.name!r} changes nothing in {wanted!r}; it changes "
            f"{', '.join(sorted(heads)) or 'nothing'}"
        )
    return dataclasses.replace(adapter, deltas=deltas)


def _sparse(name: str, delta: Delta) -> SparseDelta:
    if isinstance(delta, SparseDelta):
        return delta
    raise FormatError(
        f"PEFT's SHiRA holds sparse changes, but {name!r} is a LoRA's, which changes every entry; "
        "keep the largest, such as with `shira convert --density 0.01`"
    )


def _component(name: str) -> str:
    head = name.partition(".")[0]
    return head if head in names.COMPONENTS else ""


def _module_name(weight_name: str) -> str:
    component = _component(weight_name)
    path = weight_name.removesuffix(".weight")
    if component:
        path = path.removeprefix(f"{component}.")
    return path.removeprefix("text_model.") if component == "text_encoder" else path


def _smallest_r(deltas: Mapping[str, SparseDelta]) -> int:
    wrong = [
        name for name, one in deltas.items() if len(one.shape) != 2 or not name.endswith(".weight")
    ]
    if wrong:
        raise FormatError(
            f"PEFT's SHiRA knows linear layers alone, but this adapter changes {wrong[0]!r} of "
            f"shape {deltas[wrong[0]].shape}; leave out {len(wrong)} such weights"
        )
    r = max(1, *(math.ceil(one.nnz / sum(one.shape)) for one in deltas.values()))
    for name, one in deltas.items():
        if r * sum(one.shape) > one.numel:
            raise FormatError(
                f"PEFT needs {r} * (rows + columns) entries in every layer, which are more than "
                f"{name!r} of shape {one.shape} has; make the adapter sparser or give its layers "
                "one density"
            )
    return r


def _padded(delta: SparseDelta, r: int) -> tuple[Tensor, Tensor]:
    """Values and coordinates of r * (rows + columns) entries, zeros at the first unused ones."""
    rows, columns = delta.shape
    missing = r * (rows + columns) - delta.nnz
    used = torch.zeros(delta.numel, dtype=torch.bool)
    used[delta.indices.cpu().long()] = True
    filled = (~used).nonzero().squeeze(1)[:missing]
    flat = torch.cat([delta.indices.cpu().long(), filled])
    values = torch.cat([delta.values.detach().cpu().float(), torch.zeros(missing)])
    order = flat.argsort()
    flat = flat[order]
    coordinates = torch.stack([flat // columns, flat % columns]).to(torch.int32)
    return values[order], coordinates


def _config(info: AdapterInfo, layers: list[str], r: int) -> str:
    # Names in a list also match longer names that end in one of them; a pattern matches exactly.
    settings = {
        "peft_type": "SHIRA",
        "task_type": None,
        "auto_mapping": None,
        "base_model_name_or_path": info.base_model or None,
        "revision": None,
        "inference_mode": True,
        "r": r,
        "mask_type": "random",
        "random_seed": 0,
        "target_modules": "|".join(re.escape(layer) for layer in layers),
        "fan_in_fan_out": False,
        "init_weights": True,
        "modules_to_save": None,
    }
    return json.dumps(settings, indent=2, sort_keys=True) + "\n"


def _foreign_info(
    folder: Path, settings: Mapping[str, Any], stated: Mapping[str, str]
) -> AdapterInfo:
    base = settings.get("base_model_name_or_path")
    mask = settings.get("mask_type")
    return AdapterInfo(
        name=stated.get("modelspec.title") or folder.resolve().name or "adapter",
        base_model=base if isinstance(base, str) else "",
        method="shira",
        mask="rand" if mask == "random" else "",
    )
