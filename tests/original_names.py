"""A pipeline's weights under the names of SDXL's original code, spelt out rule by rule."""

import re

import torch
from diffusers import StableDiffusionXLPipeline
from torch import Tensor


def checkpoint_of(pipe: StableDiffusionXLPipeline) -> dict[str, Tensor]:
    """The weights under the names that SDXL's original code gives them."""
    state = {}
    layers = pipe.unet.config.layers_per_block
    for name, weight in pipe.unet.state_dict().items():
        state["model.diffusion_model." + original_unet_name(name, layers)] = weight
    levels = len(pipe.vae.config.up_block_types)
    for name, weight in pipe.vae.state_dict().items():
        state["first_stage_model." + original_vae_name(name, levels)] = weight
    for name, weight in pipe.text_encoder.state_dict().items():
        inner = name.removeprefix("text_model.")
        state[f"conditioner.embedders.0.transformer.text_model.{inner}"] = weight
    state |= original_open_clip(pipe.text_encoder_2.state_dict())
    return {name: weight.clone().contiguous() for name, weight in state.items()}


def original_unet_name(name: str, layers: int) -> str:
    for ours, theirs in {
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "add_embedding.linear_1": "label_emb.0.0",
        "add_embedding.linear_2": "label_emb.0.2",
        "conv_in.": "input_blocks.0.0.",
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
    }.items():
        if name.startswith(ours):
            return name.replace(ours, theirs)
    if "resnets" in name:
        for ours, theirs in {
            "norm1": "in_layers.0",
            "conv1": "in_layers.2",
            "time_emb_proj": "emb_layers.1",
            "norm2": "out_layers.0",
            "conv2": "out_layers.3",
            "conv_shortcut": "skip_connection",
        }.items():
            name = name.replace(ours, theirs)
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"middle_block.{2 * int(m[1])}", name)
    name = name.replace("mid_block.attentions.0", "middle_block.1")

    def block(match: re.Match[str]) -> str:
        side, number, kind, layer = match[1], int(match[2]), match[3], int(match[4])
        inside = layers if kind.endswith("samplers") else layer
        part = {"resnets": 0, "attentions": 1, "downsamplers": 0, "upsamplers": 2}[kind]
        if side == "down":
            return f"input_blocks.{1 + number * (layers + 1) + inside}.{part}"
        return f"output_blocks.{number * (layers + 1) + inside}.{part}"

    name = re.sub(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)", block, name)
    return re.sub(r"(input_blocks\.\d+\.0)\.conv\.", r"\1.op.", name)


def original_vae_name(name: str, levels: int) -> str:
    name = re.sub(r"down_blocks\.(\d+)\.resnets", r"down.\1.block", name)
    name = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", name)
    name = re.sub(
        r"up_blocks\.(\d+)\.resnets", lambda m: f"up.{levels - 1 - int(m[1])}.block", name
    )
    name = re.sub(
        r"up_blocks\.(\d+)\.upsamplers\.0",
        lambda m: f"up.{levels - 1 - int(m[1])}.upsample",
        name,
    )
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
    return name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")


def original_open_clip(state: dict[str, Tensor]) -> dict[str, Tensor]:
    prefix, result = "conditioner.embedders.1.model.", {}
    outside = {
        "text_model.embeddings.position_embedding.weight": "positional_embedding",
        "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
        "text_model.final_layer_norm.weight": "ln_final.weight",
        "text_model.final_layer_norm.bias": "ln_final.bias",
    }
    for name, weight in state.items():
        if name == "text_projection.weight":
            result[prefix + "text_projection"] = weight.T
        elif name in outside:
            result[prefix + outside[name]] = weight
        elif match := re.fullmatch(r"(.*)\.self_attn\.q_proj\.(weight|bias)", name):
            rows = [f"{match[1]}.self_attn.{one}_proj.{match[2]}" for one in "qkv"]
            layer = match[1].replace("text_model.encoder.layers", "transformer.resblocks")
            joined = torch.cat([state[row] for row in rows])
            result[f"{prefix}{layer}.attn.in_proj_{match[2]}"] = joined
        elif not re.search(r"self_attn\.[kv]_proj", name):
            for ours, theirs in {
                "text_model.encoder.layers": "transformer.resblocks",
                "self_attn": "attn",
                "layer_norm": "ln_",
                "fc1": "c_fc",
                "fc2": "c_proj",
            }.items():
                name = name.replace(ours, theirs)
            result[prefix + name] = weight
    return result
