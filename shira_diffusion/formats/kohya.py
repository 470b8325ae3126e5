"""Kohya's flat names of layers, where every dot became an underscore, as diffusers' paths.

For SDXL, kohya's scripts name the UNet's blocks as the original code does (`input_blocks_4_1`),
other tools as diffusers does; both spellings are read and can be written.
"""

from __future__ import annotations

import re
from enum import Enum

from shira_diffusion.errors import FormatError
from shira_diffusion.formats import sgm

_COMPONENTS = {
    "lora_unet_": "unet",
    "lora_te1_": "text_encoder",
    "lora_te2_": "text_encoder_2",
    "lora_te_": "text_encoder",
}
_PREFIXES = {component: prefix for prefix, component in reversed(_COMPONENTS.items())}
# The names in a UNet or CLIP that hold an underscore themselves.
_COMPOUND = re.compile(
    "down_blocks|mid_block|up_blocks|input_blocks|middle_block|output_blocks|transformer_blocks"
    "|to_q|to_k|to_v|to_out|proj_in|proj_out|conv_in|conv_out|conv_norm_out|conv_shortcut"
    "|time_emb_proj|time_embedding|add_embedding|linear_1|linear_2|time_embed|label_emb|in_layers"
    "|out_layers|emb_layers|skip_connection|text_model|text_projection|token_embedding"
    "|position_embedding|final_layer_norm|layer_norm1|layer_norm2|self_attn|q_proj|k_proj|v_proj"
    "|out_proj|[^_]+"
)


class Naming(Enum):
    """How a flat name calls the UNet's blocks: as SDXL's original code, or as diffusers."""

    SGM = "sgm"
    DIFFUSERS = "diffusers"


def layer_path(flat: str) -> str:
    """`lora_unet_down_blocks_1_..._to_q` as `unet.down_blocks.1...to_q`, in either naming.

    Raises `FormatError` for a name of another kind of model.
    """
    for prefix, component in _COMPONENTS.items():
        if flat.startswith(prefix):
            path = ".".join(_COMPOUND.findall(flat.removeprefix(prefix)))
            return f"{component}.{sgm.from_sgm(path) if component == 'unet' else path}"
    raise FormatError(f"the layer {flat!r} is of no UNet or CLIP text encoder")


def flat_name(layer: str, naming: Naming) -> str:
    """`unet.down_blocks.1...to_q` as kohya's flat name; the inverse of `layer_path`.

    Raises `FormatError` for a layer that is of no UNet or CLIP text encoder of SDXL.
    """
    component, _, path = layer.partition(".")
    if component not in _PREFIXES or not path:
        raise FormatError(f"the layer {layer!r} is of no UNet or CLIP text encoder")
    if component == "unet" and naming is Naming.SGM:
        path = sgm.to_sgm(path)
    return _PREFIXES[component] + path.replace(".", "_")
