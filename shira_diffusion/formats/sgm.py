"""SDXL's names in a checkpoint file, as its original code has them, and in diffusers.

One table of UNet layers and one of the second text encoder's (OpenCLIP's names), read in both
directions. See https://github.com/Stability-AI/generative-models.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from shira_diffusion.errors import FormatError

UNET = "model.diffusion_model."
CLIP = "conditioner.embedders.0.transformer."
OPEN_CLIP = "conditioner.embedders.1.model."
VAE = "first_stage_model."
_QKV = ("q_proj", "k_proj", "v_proj")


def _unet_layers() -> dict[str, str]:
    layers = {
        "conv_in": "input_blocks.0.0",
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "add_embedding.linear_1": "label_emb.0.0",
        "add_embedding.linear_2": "label_emb.0.2",
        "mid_block.resnets.0": "middle_block.0",
        "mid_block.attentions.0": "middle_block.1",
        "mid_block.resnets.1": "middle_block.2",
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
    }
    # Two layers in a block going down and then a sampler, three going up.
    for block in range(3):
        for layer in range(3):
            down, up = 1 + 3 * block + layer, 3 * block + layer
            if layer < 2:
                layers[f"down_blocks.{block}.resnets.{layer}"] = f"input_blocks.{down}.0"
                layers[f"down_blocks.{block}.attentions.{layer}"] = f"input_blocks.{down}.1"
            else:
                layers[f"down_blocks.{block}.downsamplers.0.conv"] = f"input_blocks.{down}.0.op"
                layers[f"up_blocks.{block}.upsamplers.0.conv"] = f"output_blocks.{up}.2.conv"
            layers[f"up_blocks.{block}.resnets.{layer}"] = f"output_blocks.{up}.0"
            layers[f"up_blocks.{block}.attentions.{layer}"] = f"output_blocks.{up}.1"
    return layers


_TO_SGM = _unet_layers()
_FROM_SGM = {ours: theirs for theirs, ours in _TO_SGM.items()}
_RESNET_TO_SGM = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_RESNET_FROM_SGM = {theirs: ours for ours, theirs in _RESNET_TO_SGM.items()}
_SGM_START = re.compile(r"(input_blocks|middle_block|output_blocks|time_embed|label_emb|out)\.")
_CLIP_LAYER = re.compile(r"text_model\.encoder\.layers\.(\d+)\.(.+)")
_OPEN_CLIP_LAYER = re.compile(r"transformer\.resblocks\.(\d+)\.(.+)")
_CLIP_OUTSIDE = {
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm.weight": "ln_final.weight",
    "text_model.final_layer_norm.bias": "ln_final.bias",
    "text_projection.weight": "text_projection",
}
_OPEN_CLIP_OUTSIDE = {theirs: ours for ours, theirs in _CLIP_OUTSIDE.items()}
_CLIP_INNER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
_OPEN_CLIP_INNER = {theirs: ours for ours, theirs in _CLIP_INNER.items()}


def to_sgm(path: str) -> str:
    """A UNet's layer, or a weight of it, by the original code's path; `from_sgm` is the inverse.

    Raises `FormatError` for a path that SDXL's UNet does not have.
    """
    layer, rest = _split(path, _TO_SGM)
    inner = _renamed(rest, _RESNET_TO_SGM) if ".resnets." in layer else rest
    return _TO_SGM[layer] + inner


def from_sgm(path: str) -> str:
    """A UNet's path in diffusers, which stays as it is when it is that already."""
    if _SGM_START.match(path) is None:
        return path
    layer, rest = _split(path, _FROM_SGM)
    ours = _FROM_SGM[layer]
    return ours + (_renamed(rest, _RESNET_FROM_SGM) if ".resnets." in ours else rest)


@dataclass(frozen=True)
class Part:
    """Where a weight lies in a checkpoint: under `key`, all of it, or one `third` of the rows.

    OpenCLIP keeps queries, keys and values in one tensor, and its projection `transposed`.
    """

    key: str
    third: int | None = None
    transposed: bool = False

    def fits(self, shape: Sequence[int]) -> bool:
        """Whether a stored tensor of this shape can hold it."""
        if self.third is not None:
            return len(shape) > 0 and shape[0] % 3 == 0
        return not self.transposed or len(shape) == 2

    def of(self, stored: Tensor) -> Tensor:
        """The weight within the stored tensor, as a view."""
        if self.third is not None:
            rows = stored.shape[0] // 3
            stored = stored[self.third * rows : (self.third + 1) * rows]
        return stored.t() if self.transposed else stored


def to_checkpoint(name: str) -> Part:
    """Where the weight `name` ("unet.conv_in.weight") lies in SDXL's single file."""
    component, _, path = name.partition(".")
    if component == "unet":
        return Part(UNET + to_sgm(path))
    if component == "text_encoder":
        return Part(CLIP + path)
    if component == "text_encoder_2":
        return _to_open_clip(path)
    raise FormatError(f"the weight {name!r} has no place in a checkpoint of SDXL")


def from_checkpoint(key: str) -> Mapping[str, Part]:
    """The weights that a checkpoint keeps under `key`; none for what no adapter changes."""
    if key.startswith(UNET):
        return {f"unet.{from_sgm(key.removeprefix(UNET))}": Part(key)}
    if key.startswith(CLIP):
        path = key.removeprefix(CLIP)
        return {} if path.endswith("position_ids") else {f"text_encoder.{path}": Part(key)}
    if key.startswith(OPEN_CLIP):
        return _from_open_clip(key)
    return {}


def _split(path: str, layers: Mapping[str, str]) -> tuple[str, str]:
    """The longest start of `path` that is one of `layers`, and what follows it."""
    end = len(path)
    while end > 0:
        if path[:end] in layers:
            return path[:end], path[end:]
        end = path.rfind(".", 0, end)
    raise FormatError(f"the layer {path!r} is of no SDXL UNet")


def _renamed(rest: str, names: Mapping[str, str]) -> str:
    """`.conv1.weight` with `conv1` by its other name."""
    for ours, theirs in names.items():
        if rest == f".{ours}" or rest.startswith(f".{ours}."):
            return f".{theirs}{rest[1 + len(ours) :]}"
    return rest


def _to_open_clip(path: str) -> Part:
    if path in _CLIP_OUTSIDE:
        return Part(OPEN_CLIP + _CLIP_OUTSIDE[path], transposed=path == "text_projection.weight")
    match = _CLIP_LAYER.fullmatch(path)
    if match is not None:
        start = f"{OPEN_CLIP}transformer.resblocks.{match[1]}."
        module, _, last = match[2].rpartition(".")
        if module in _CLIP_INNER:
            return Part(f"{start}{_CLIP_INNER[module]}.{last}")
        head = module.removeprefix("self_attn.")
        if head in _QKV:
            return Part(f"{start}attn.in_proj_{last}", third=_QKV.index(head))
    raise FormatError(f"SDXL's second text encoder has no weight {path!r}")


def _from_open_clip(key: str) -> Mapping[str, Part]:
    path = key.removeprefix(OPEN_CLIP)
    if path in _OPEN_CLIP_OUTSIDE:
        ours = _OPEN_CLIP_OUTSIDE[path]
        return {f"text_encoder_2.{ours}": _to_open_clip(ours)}
    match = _OPEN_CLIP_LAYER.fullmatch(path)
    if match is None:
        return {}
    start = f"text_encoder_2.text_model.encoder.layers.{match[1]}."
    if match[2].startswith("attn.in_proj_"):
        last = match[2].removeprefix("attn.in_proj_")
        return {
            f"{start}self_attn.{head}.{last}": Part(key, third) for third, head in enumerate(_QKV)
        }
    module, _, last = match[2].rpartition(".")
    if module not in _OPEN_CLIP_INNER:
        return {}
    return {f"{start}{_OPEN_CLIP_INNER[module]}.{last}": Part(key)}
