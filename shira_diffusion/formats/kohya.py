"""Kohya's flat names of layers, where every dot became an underscore, as diffusers' paths.

For SDXL, kohya's scripts name the UNet's blocks as the original code does (`input_blocks_4_1`,
in https://github.com/Stability-AI/generative-models); both spellings are understood.
"""

from __future__ import annotations

import re

from shira_diffusion.errors import FormatError

_COMPONENTS = {
    "lora_unet_": "unet",
    "lora_te1_": "text_encoder",
    "lora_te2_": "text_encoder_2",
    "lora_te_": "text_encoder",
}
# The names in a UNet or CLIP that hold an underscore themselves.
_COMPOUND = re.compile(
    "down_blocks|mid_block|up_blocks|input_blocks|middle_block|output_blocks|transformer_blocks"
    "|to_q|to_k|to_v|to_out|proj_in|proj_out|conv_in|conv_out|conv_shortcut|time_emb_proj"
    "|time_embedding|add_embedding|linear_1|linear_2|time_embed|label_emb|in_layers|out_layers"
    "|emb_layers|skip_connection|text_model|text_projection|self_attn|q_proj|k_proj|v_proj"
    "|out_proj|[^_]+"
)
_OUTSIDE_BLOCKS = {
    "input_blocks.0.0": "conv_in",
    "out.2": "conv_out",
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb.0.0": "add_embedding.linear_1",
    "label_emb.0.2": "add_embedding.linear_2",
}
_IN_RESNET = {
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
_MIDDLE = ("resnets.0", "attentions.0", "resnets.1")
_SGM_BLOCK = re.compile(r"(input_blocks|middle_block|output_blocks)\.(\d+)(?:\.(\d+))?\.(.+)")
# SDXL's UNet: two layers in a block going down and a sampler, three going up.
_LAYERS = 3


def layer_path(flat: str) -> str:
    """`lora_unet_down_blocks_1_..._to_q` as `unet.down_blocks.1...to_q`.

    Raises `FormatError` for a name of another kind of model.
    """
    for prefix, component in _COMPONENTS.items():
        if flat.startswith(prefix):
            path = ".".join(_COMPOUND.findall(flat.removeprefix(prefix)))
            return f"{component}.{_from_sgm(path) if component == 'unet' else path}"
    raise FormatError(f"the layer {flat!r} is of no UNet or CLIP text encoder")


def _from_sgm(path: str) -> str:
    if path in _OUTSIDE_BLOCKS:
        return _OUTSIDE_BLOCKS[path]
    match = _SGM_BLOCK.fullmatch(path)
    if match is None:
        return path
    side, number, part, rest = match.groups()
    if side == "middle_block" and int(number) < len(_MIDDLE):
        inner = rest if part is None else f"{part}.{rest}"
        return f"mid_block.{_MIDDLE[int(number)]}.{_IN_RESNET.get(inner, inner)}"
    kinds = ("resnets", "attentions", "upsamplers")
    if side == "middle_block" or part is None or int(part) >= len(kinds):
        raise FormatError(f"the layer {path!r} is of no SDXL UNet")
    if side == "input_blocks":
        block, layer = divmod(int(number) - 1, _LAYERS)
        if rest == "op":
            return f"down_blocks.{block}.downsamplers.0.conv"
        return f"down_blocks.{block}.{kinds[int(part)]}.{layer}.{_IN_RESNET.get(rest, rest)}"
    block, layer = divmod(int(number), _LAYERS)
    place = 0 if kinds[int(part)] == "upsamplers" else layer
    return f"up_blocks.{block}.{kinds[int(part)]}.{place}.{_IN_RESNET.get(rest, rest)}"
