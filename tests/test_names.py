"""Every naming of SDXL's weights, in both directions, on the real key list of its own configs."""

import re
from collections.abc import Iterator

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.loaders.lora_conversion_utils import (
    _convert_non_diffusers_lora_to_diffusers,
    _maybe_map_sgm_blocks_to_diffusers,
)
from diffusers.loaders.single_file_utils import (
    convert_ldm_unet_checkpoint,
    convert_open_clip_checkpoint,
)
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from benchmarks.train_unet import SDXL
from shira_diffusion.components import canonical_name
from shira_diffusion.errors import FormatError
from shira_diffusion.formats import kohya, names, sgm
from shira_diffusion.formats.kohya import Naming

# SDXL's two text encoders (text_encoder/config.json and text_encoder_2/config.json).
CLIP = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12}
OPEN_CLIP = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "hidden_act": "gelu",
    "projection_dim": 1280,
}


@pytest.fixture(scope="module")
def sdxl() -> dict[str, nn.Module]:
    with torch.device("meta"):
        return {
            "unet": UNet2DConditionModel(**SDXL),
            "text_encoder": CLIPTextModel(CLIPTextConfig(**CLIP)),
            "text_encoder_2": CLIPTextModelWithProjection(CLIPTextConfig(**OPEN_CLIP)),
        }


@pytest.fixture(scope="module")
def shapes(sdxl: dict[str, nn.Module]) -> dict[str, tuple[int, ...]]:
    return {
        canonical_name(f"{part}.{name}"): tuple(weight.shape)
        for part, module in sdxl.items()
        for name, weight in module.named_parameters()
    }


def layers(shapes: dict[str, tuple[int, ...]]) -> Iterator[str]:
    """The layers that a LoRA may change."""
    for name, shape in shapes.items():
        if name.endswith(".weight") and len(shape) >= 2:
            yield name.removesuffix(".weight")


def test_the_key_list_is_sdxls(shapes: dict[str, tuple[int, ...]]) -> None:
    counts = {
        part: sum(name.startswith(f"{part}.") for name in shapes) for part in names.COMPONENTS
    }
    assert counts == {"unet": 1680, "text_encoder": 196, "text_encoder_2": 517}
    assert sum(name.startswith("text_encoder.text_model.") for name in shapes) == 196


@pytest.mark.parametrize("naming", Naming)
def test_kohyas_names_both_ways(shapes: dict[str, tuple[int, ...]], naming: Naming) -> None:
    flat = {layer: kohya.flat_name(layer, naming) for layer in layers(shapes)}
    assert len(flat) == 1063
    assert len(set(flat.values())) == len(flat)
    for layer, name in flat.items():
        assert kohya.layer_path(name) == layer
        assert names.canonical(name) == layer
        assert names.canonical(names.PEFT + name) == layer


def test_kohyas_names_are_the_ones_that_are_in_use(shapes: dict[str, tuple[int, ...]]) -> None:
    to_q = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
    flat = {naming: kohya.flat_name(to_q, naming) for naming in Naming}
    assert flat == {
        Naming.SGM: "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q",
        Naming.DIFFUSERS: "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q",
    }
    fc1 = "text_encoder_2.text_model.encoder.layers.11.mlp.fc1"
    assert kohya.flat_name(fc1, Naming.SGM) == "lora_te2_text_model_encoder_layers_11_mlp_fc1"


def test_kohyas_sgm_names_are_those_that_diffusers_maps(sdxl: dict[str, nn.Module]) -> None:
    unet = sdxl["unet"]
    named = unet.named_parameters()
    matrices = [name for name, one in named if name.endswith(".weight") and one.dim() > 1]
    numbers = {name.removesuffix(".weight"): number for number, name in enumerate(matrices)}
    state = {}
    for layer, number in numbers.items():
        flat = kohya.flat_name(f"unet.{layer}", Naming.SGM)
        state[f"{flat}.alpha"] = torch.tensor(1.0)
        for part in ("lora_down", "lora_up"):
            state[f"{flat}.{part}.weight"] = torch.full((1,), float(number))
    mapped = _maybe_map_sgm_blocks_to_diffusers(state, unet.config)
    converted, _ = _convert_non_diffusers_lora_to_diffusers(mapped)
    found = {}
    for key, tensor in converted.items():
        # Attention's factors are in processors, as before diffusers 0.22.
        layer = re.sub(r"[._]lora\.down\.weight$", "", key).removeprefix("unet.")
        if layer != key.removeprefix("unet."):
            layer = re.sub(r"\.processor\.to_out$", ".to_out.0", layer)
            found[layer.replace(".processor.", ".")] = numbered(tensor)
    assert found == numbers


def test_checkpoint_names_both_ways(shapes: dict[str, tuple[int, ...]]) -> None:
    by_key: dict[str, set[str]] = {}
    for name in shapes:
        by_key.setdefault(sgm.to_checkpoint(name).key, set()).add(name)
    for key, members in by_key.items():
        found = sgm.from_checkpoint(key)
        assert set(found) == members
        assert all(sgm.to_checkpoint(name) == part for name, part in found.items())
        if len(members) == 1:
            assert names.canonical(key) == next(iter(members))
    thirds = [members for members in by_key.values() if len(members) > 1]
    assert len(thirds) == 2 * 32
    assert all(len(members) == 3 for members in thirds)


def test_checkpoint_names_are_those_that_diffusers_converts(
    sdxl: dict[str, nn.Module], shapes: dict[str, tuple[int, ...]]
) -> None:
    unet = sdxl["unet"]
    stored = stored_as(shapes, "unet.")
    converted = convert_ldm_unet_checkpoint(dict(stored), dict(unet.config))
    assert {f"unet.{name}": numbered(one) for name, one in converted.items()} == identities(
        shapes, "unet."
    )


def test_open_clips_parts_are_those_that_diffusers_converts(
    sdxl: dict[str, nn.Module], shapes: dict[str, tuple[int, ...]]
) -> None:
    generator = torch.Generator().manual_seed(0)
    small = {
        name: tuple(min(size, 6) for size in shape)
        for name, shape in shapes.items()
        if name.startswith("text_encoder_2.")
    }
    stored: dict[str, Tensor] = {}
    for key in {sgm.to_checkpoint(name).key for name in small}:
        parts = sgm.from_checkpoint(key)
        rows = small[next(iter(parts))]
        shape = (3 * rows[0], *rows[1:]) if len(parts) == 3 else rows
        stored[key] = torch.rand(shape, generator=generator)
    model = _Sized(sdxl["text_encoder_2"], width=6)
    converted = convert_open_clip_checkpoint(model, dict(stored), prefix=sgm.OPEN_CLIP)
    for name in small:
        part = sgm.to_checkpoint(name)
        ours = part.of(stored[part.key])
        theirs = converted[name.removeprefix("text_encoder_2.")]
        assert torch.equal(ours, theirs), name


class _Sized:
    """As much of a text encoder as diffusers' conversion looks at."""

    def __init__(self, module: nn.Module, width: int):
        self.config = module.config
        self.text_projection = nn.Linear(width, width, bias=False)
        self._keys = module.state_dict().keys()

    def state_dict(self) -> dict[str, None]:
        return dict.fromkeys(self._keys)


def stored_as(shapes: dict[str, tuple[int, ...]], start: str) -> dict[str, Tensor]:
    """Tensors under a checkpoint's names that only hold their weight's number."""
    return {
        sgm.to_checkpoint(name).key: torch.full((1,), float(number))
        for name, number in identities(shapes, start).items()
    }


def identities(shapes: dict[str, tuple[int, ...]], start: str) -> dict[str, int]:
    return {name: number for number, name in enumerate(shapes) if name.startswith(start)}


def numbered(tensor: Tensor) -> int:
    return int(tensor.item())


@pytest.mark.parametrize("prefix", ["", names.PEFT])
def test_every_prefix_means_the_same_weight(
    shapes: dict[str, tuple[int, ...]], prefix: str
) -> None:
    for name in shapes:
        assert names.canonical(prefix + name) == name
        component, _, path = name.partition(".")
        assert names.canonical(f"{component}.{prefix}{path}") == name
        if component != "unet":
            # transformers from 5.6 on, and files of before.
            assert names.canonical(f"{component}.{path.removeprefix('text_model.')}") == name
            continue
        theirs = sgm.to_sgm(path)
        assert sgm.from_sgm(theirs) == path
        assert sgm.from_sgm(path) == path
        for start in ("", "unet.", "diffusion_model.", "model.diffusion_model."):
            if start:
                assert names.canonical(prefix + start + theirs) == name
        assert names.canonical(prefix + path) == name


@pytest.mark.parametrize(
    "name",
    ["x.to_q", "lora_transformer_blocks_0", "unet.input_blocks.12.0.op", "unet", "transformer.x"],
)
def test_names_of_other_models_are_refused(name: str) -> None:
    with pytest.raises(FormatError, match=r"of no|names no"):
        names.canonical(name)


def test_bare_names_stay() -> None:
    llama = "model.layers.0.self_attn.q_proj"
    assert names.canonical_or_bare(names.PEFT + llama) == llama
    assert names.canonical_or_bare("down_blocks.0.x") == "unet.down_blocks.0.x"
