"""Loading bases, their fingerprints, and the groups of weights that can be trained."""

import copy
import dataclasses
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from safetensors.torch import save_file

from emoji_xl.architecture import TOY, build_pipeline, save_pipeline
from emoji_xl.vocabulary import learn_tokenizer
from shira_diffusion.errors import BaseModelError, SettingError
from shira_diffusion.pipeline import component_modules, fingerprint, load_base, target_weights
from tests.original_names import checkpoint_of


def test_a_folder(toy_base: Path, toy_pipe: StableDiffusionXLPipeline) -> None:
    pipe = load_base(toy_base)
    assert isinstance(pipe, StableDiffusionXLPipeline)
    for name, module in component_modules(toy_pipe).items():
        for weight_name, weight in module.named_parameters():
            loaded = component_modules(pipe)[name].get_parameter(weight_name)
            assert loaded.dtype == torch.float32
            assert torch.equal(loaded, weight)
    half = load_base(str(toy_base), device="cpu", dtype=torch.bfloat16)
    assert half.unet.dtype == half.text_encoder_2.dtype == torch.bfloat16


def test_a_folder_with_fp16_files_only(toy_base: Path, tmp_path: Path) -> None:
    load_base(toy_base).save_pretrained(tmp_path, variant="fp16")
    assert not (tmp_path / "unet" / "diffusion_pytorch_model.safetensors").exists()
    assert fingerprint(load_base(tmp_path).unet) == fingerprint(load_base(toy_base).unet)


def test_a_single_file(tmp_path: Path) -> None:
    # diffusers tells the two text encoders of a checkpoint apart by their widths.
    size = dataclasses.replace(TOY, text_2_width=32)
    tokenizer = learn_tokenizer(["a red apple"], tokens=600, prompt_tokens=size.prompt_tokens)
    save_pipeline(build_pipeline(size, tokenizer), tmp_path / "folder")
    folder = load_base(tmp_path / "folder")
    save_file(checkpoint_of(folder), tmp_path / "model.safetensors")
    pipe = load_base(tmp_path / "model.safetensors", config=tmp_path / "folder")
    for part in ("unet", "vae", "text_encoder", "text_encoder_2"):
        loaded = dict(getattr(pipe, part).named_parameters())
        for name, weight in getattr(folder, part).named_parameters():
            assert torch.equal(loaded[name], weight), f"{part}.{name}"


def test_bad_sources(tmp_path: Path, toy_base: Path) -> None:
    with pytest.raises(BaseModelError, match=r"'no-such-model'.*no such folder or file"):
        load_base("no-such-model")
    for missing in ("./models/missing", tmp_path / "missing", "missing/model.safetensors"):
        with pytest.raises(BaseModelError, match="no such folder or file"):
            load_base(missing)
    with pytest.raises(BaseModelError, match=r"model_index\.json"):
        load_base(tmp_path)
    (tmp_path / "a.ckpt").write_bytes(b"")
    with pytest.raises(BaseModelError, match=r"any program.*\.safetensors"):
        load_base(tmp_path / "a.ckpt")
    (tmp_path / "a.safetensors").write_bytes(b"nothing")
    with pytest.raises(BaseModelError, match=r"a\.safetensors"):
        load_base(tmp_path / "a.safetensors", config=toy_base)


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "meta", "cpu:1"])
def test_a_device_that_is_not_there(toy_base: Path, device: str) -> None:
    with pytest.raises(SettingError, match=f"'{device}' here; there are: cpu"):
        load_base(toy_base, device=device)


def test_bad_folders(tmp_path: Path, toy_base: Path) -> None:
    folder = tmp_path / "base"
    shutil.copytree(toy_base, folder)
    (folder / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"cut short")
    with pytest.raises(BaseModelError, match="base"):
        load_base(folder)
    shutil.rmtree(folder / "unet")
    with pytest.raises(BaseModelError, match="base"):
        load_base(folder)
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "FluxPipeline"}))
    with pytest.raises(BaseModelError, match="FluxPipeline; only Stable Diffusion XL"):
        load_base(folder)
    (folder / "model_index.json").write_text("{")
    with pytest.raises(BaseModelError, match="base"):
        load_base(folder)


def test_components(toy_pipe: StableDiffusionXLPipeline) -> None:
    parts = component_modules(toy_pipe)
    assert set(parts) == {"unet", "text_encoder", "text_encoder_2"}
    assert parts["unet"] is toy_pipe.unet


def test_target_groups(toy_pipe: StableDiffusionXLPipeline) -> None:
    unet = toy_pipe.unet
    groups = {
        target: target_weights(unet, [target])
        for target in ("attention", "feed_forward", "projection", "conv")
    }
    attention = groups["attention"]
    blocks = {name.split(".attn")[0] for name in attention}
    # Self- and cross-attention, each with q, k, v and out, in every transformer block.
    assert len(attention) == 8 * len(blocks) > 0
    assert all(weight.dim() == 2 for weight in attention.values())
    assert len(groups["feed_forward"]) == 2 * len(blocks)
    assert all(weight.dim() == 4 for weight in groups["conv"].values())
    every = target_weights(unet, list(groups))
    assert len(every) == sum(len(group) for group in groups.values())
    # Of matrices and filters only the stem, the ends and the embeddings belong to no group.
    rest = {name.split(".")[0] for name, one in unet.named_parameters() if one.dim() > 1}
    rest_names = {
        name for name, one in unet.named_parameters() if one.dim() > 1 and name not in every
    }
    assert "down_blocks" in rest
    assert all(
        "time_emb_proj" in name
        or name.startswith(("conv_in", "conv_out", "time_embedding", "add_embedding"))
        for name in rest_names
    )
    text = target_weights(toy_pipe.text_encoder, ["attention", "feed_forward"])
    assert len(text) == 6 * TOY.text_layers
    with pytest.raises(SettingError, match="'attention'"):
        target_weights(unet, ["atention"])
    with pytest.raises(SettingError, match=r"CLIPTextModel has no weights of the group 'conv'"):
        target_weights(toy_pipe.text_encoder, ["conv"])


def test_target_blocks(toy_pipe: StableDiffusionXLPipeline) -> None:
    unet = toy_pipe.unet
    every = target_weights(unet, ["attention", "conv"])
    blocks = {name.split(".")[0] for name in every}
    assert blocks == {"down_blocks", "mid_block", "up_blocks"}
    some = target_weights(unet, ["attention", "conv"], ["mid_block", "up_blocks.1"])
    assert list(some) == [name for name in every if name.startswith(("mid_block.", "up_blocks.1."))]
    assert all(some[name] is every[name] for name in some)
    within_one = target_weights(unet, ["attention"], ["mid_block.attentions.0"])
    assert within_one
    assert all(name.startswith("mid_block.attentions.0.") for name in within_one)
    # A block's name is no mere beginning of text: there is no block "up".
    with pytest.raises(SettingError, match=r"in the block 'up'; .*'up_blocks\.0'"):
        target_weights(unet, ["attention"], ["mid_block", "up"])
    # The group is there, but not in this block.
    no_attention = next(
        name.rsplit(".resnets")[0]
        for name in target_weights(unet, ["conv"])
        if name.startswith("down_blocks.0.resnets")
    )
    with pytest.raises(SettingError, match=no_attention):
        target_weights(unet, ["attention"], [no_attention])


def test_fingerprint_survives_precision_and_nothing_else(
    toy_pipe: StableDiffusionXLPipeline,
) -> None:
    unet = toy_pipe.unet
    mark = fingerprint(unet)
    assert re.fullmatch("[0-9a-f]{64}", mark)
    for dtype in (torch.float16, torch.bfloat16):
        assert fingerprint(copy.deepcopy(unet).to(dtype)) == mark
    assert fingerprint(copy.deepcopy(unet).to(memory_format=torch.channels_last)) == mark
    trained = copy.deepcopy(unet)
    generator = torch.Generator().manual_seed(0)
    for weight in trained.parameters():
        weight.data += torch.randn(weight.shape, generator=generator) * 0.01 * weight.std()
    assert fingerprint(trained) != mark
    assert fingerprint(toy_pipe.text_encoder) != fingerprint(toy_pipe.text_encoder_2)
