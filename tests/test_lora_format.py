"""LoRA files: the change they load as is the one that PEFT merges, in every naming."""

import json
import re
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from diffusers.utils import convert_state_dict_to_diffusers
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor, nn

from shira_diffusion.adapter import Adapter, AdapterInfo
from shira_diffusion.errors import FormatError
from shira_diffusion.formats import kohya, lora, metadata
from shira_diffusion.pipeline import component_modules
from shira_diffusion.switch import AdapterSwitcher

UNET_TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "conv1", "proj_in", "conv_shortcut"]
TEXT_TARGETS = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1"]


def add_loras(pipe: StableDiffusionXLPipeline, **config: object) -> dict[str, nn.Module]:
    """PEFT's LoRA in all three components, with factors that do something."""
    parts = component_modules(pipe)
    generator = torch.Generator().manual_seed(0)
    for name, module in parts.items():
        targets = UNET_TARGETS if name == "unet" else TEXT_TARGETS
        inject_adapter_in_model(LoraConfig(target_modules=targets, **config), module)
        for weight_name, weight in module.named_parameters():
            if "lora_" in weight_name:
                weight.data = torch.randn(weight.shape, generator=generator)
    return parts


def merged_weights(parts: dict[str, nn.Module]) -> dict[str, Tensor]:
    """Every weight after PEFT's own merge, by its name without PEFT's wrapper."""
    for module in parts.values():
        for layer in module.modules():
            if isinstance(layer, BaseTunerLayer):
                layer.merge()
    return {
        f"{part}.{name.replace('.base_layer', '')}": weight.detach()
        for part, module in parts.items()
        for name, weight in module.named_parameters()
        if "lora_" not in name
    }


def factors(parts: dict[str, nn.Module]) -> dict[str, Tensor]:
    return {
        f"{part}.{name}": weight.contiguous()
        for part, module in parts.items()
        for name, weight in get_peft_model_state_dict(module).items()
    }


def assert_gives(
    adapter: Adapter, pipe: StableDiffusionXLPipeline, expected: dict[str, Tensor]
) -> None:
    """The adapter in the untouched pipeline gives PEFT's merged weights."""
    switcher = AdapterSwitcher(pipe)
    switcher.add("lora", adapter)
    before = expected.keys() & {
        f"{part}.{name}"
        for part, module in component_modules(pipe).items()
        for name, _ in module.named_parameters()
    }
    assert before == expected.keys()
    with switcher.using({"lora": 1.0}):
        for part, module in component_modules(pipe).items():
            for name, weight in module.named_parameters():
                wanted = expected[f"{part}.{name}"]
                assert torch.allclose(weight, wanted, atol=1e-5, rtol=1e-5), f"{part}.{name}"
                if weight.dim() == 2:
                    assert torch.equal(weight, wanted), f"{part}.{name}"


@pytest.fixture
def other_pipe(toy_base: Path) -> StableDiffusionXLPipeline:
    return StableDiffusionXLPipeline.from_pretrained(toy_base, dtype=torch.float32)


@pytest.mark.filterwarnings("ignore:The following alpha_pattern keys")
@pytest.mark.parametrize("rslora", [False, True])
def test_diffusers_file_with_peft_settings(
    tmp_path: Path,
    toy_pipe: StableDiffusionXLPipeline,
    other_pipe: StableDiffusionXLPipeline,
    rslora: bool,
) -> None:
    pattern = {"attn2.to_q": 7.0, "fc1": 2.0}
    parts = add_loras(toy_pipe, r=4, lora_alpha=3, alpha_pattern=pattern, use_rslora=rslora)
    settings_of = {
        f"{part}.{key}": value
        for part in parts
        for key, value in {
            "lora_alpha": 3,
            "alpha_pattern": pattern,
            "use_rslora": rslora,
        }.items()
    }
    file = tmp_path / "pytorch_lora_weights.safetensors"
    save_file(factors(parts), file, metadata={"lora_adapter_metadata": json.dumps(settings_of)})
    adapter = Adapter.load(file)
    assert adapter.density == 1.0
    assert adapter.info.method == "lora"
    assert_gives(adapter, other_pipe, merged_weights(parts))


def test_file_as_diffusers_saves_it(
    tmp_path: Path,
    toy_pipe: StableDiffusionXLPipeline,
    other_pipe: StableDiffusionXLPipeline,
) -> None:
    parts = add_loras(toy_pipe, r=2, lora_alpha=2)
    layers = {
        part: convert_state_dict_to_diffusers(get_peft_model_state_dict(module))
        for part, module in parts.items()
    }
    StableDiffusionXLPipeline.save_lora_weights(
        tmp_path,
        unet_lora_layers=layers["unet"],
        text_encoder_lora_layers=layers["text_encoder"],
        text_encoder_2_lora_layers=layers["text_encoder_2"],
    )
    adapter = Adapter.load(tmp_path / "pytorch_lora_weights.safetensors")
    assert adapter.info.name == "pytorch_lora_weights"
    assert_gives(adapter, other_pipe, merged_weights(parts))


def kohya_name(name: str) -> str:
    """`unet.a.b.lora_A.weight` as `lora_unet_a_b.lora_down.weight`."""
    component, _, rest = name.partition(".")
    layer, side = re.fullmatch(r"(.*)\.lora_(A|B)\.weight", rest).groups()  # type: ignore[union-attr]
    prefix = {"unet": "unet", "text_encoder": "te1", "text_encoder_2": "te2"}[component]
    if component != "unet" and not layer.startswith("text_model."):
        layer = f"text_model.{layer}"
    end = "lora_down" if side == "A" else "lora_up"
    return f"lora_{prefix}_{layer.replace('.', '_')}.{end}.weight"


def test_kohya_file_with_alphas(
    tmp_path: Path,
    toy_pipe: StableDiffusionXLPipeline,
    other_pipe: StableDiffusionXLPipeline,
) -> None:
    parts = add_loras(toy_pipe, r=4, lora_alpha=1)
    state = {kohya_name(name): weight for name, weight in factors(parts).items()}
    layers = {name.partition(".")[0] for name in state}
    state |= {f"{layer}.alpha": torch.tensor(1.0) for layer in layers}
    stated = {
        "ss_output_name": "robot",
        "ss_base_model_version": "sdxl_base_v1-0",
        "modelspec.title": "A robot",
        "modelspec.trigger_phrase": "sks robot, tin man",
        "modelspec.author": "them",
    }
    save_file(state, tmp_path / "a.safetensors", metadata=stated)
    adapter = Adapter.load(tmp_path / "a.safetensors")
    info = adapter.info
    assert (info.name, info.title, info.author) == ("robot", "A robot", "them")
    assert info.base_model == "sdxl_base_v1-0"
    assert info.trigger_words == ("sks robot", "tin man")
    assert_gives(adapter, other_pipe, merged_weights(parts))


@pytest.mark.parametrize(
    ("flat", "path"),
    [
        (
            "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q",
            "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
        ),
        (
            "lora_unet_input_blocks_8_1_transformer_blocks_9_ff_net_0_proj",
            "unet.down_blocks.2.attentions.1.transformer_blocks.9.ff.net.0.proj",
        ),
        ("lora_unet_input_blocks_3_0_op", "unet.down_blocks.0.downsamplers.0.conv"),
        ("lora_unet_input_blocks_1_0_in_layers_2", "unet.down_blocks.0.resnets.0.conv1"),
        ("lora_unet_middle_block_1_proj_in", "unet.mid_block.attentions.0.proj_in"),
        ("lora_unet_middle_block_2_out_layers_3", "unet.mid_block.resnets.1.conv2"),
        ("lora_unet_middle_block_0_emb_layers_1", "unet.mid_block.resnets.0.time_emb_proj"),
        (
            "lora_unet_output_blocks_3_1_transformer_blocks_1_attn2_to_out_0",
            "unet.up_blocks.1.attentions.0.transformer_blocks.1.attn2.to_out.0",
        ),
        ("lora_unet_output_blocks_2_2_conv", "unet.up_blocks.0.upsamplers.0.conv"),
        ("lora_unet_output_blocks_8_0_skip_connection", "unet.up_blocks.2.resnets.2.conv_shortcut"),
        ("lora_unet_input_blocks_0_0", "unet.conv_in"),
        ("lora_unet_time_embed_2", "unet.time_embedding.linear_2"),
        ("lora_unet_label_emb_0_0", "unet.add_embedding.linear_1"),
        ("lora_unet_out_2", "unet.conv_out"),
        (
            "lora_te1_text_model_encoder_layers_0_self_attn_q_proj",
            "text_encoder.text_model.encoder.layers.0.self_attn.q_proj",
        ),
        (
            "lora_te2_text_model_encoder_layers_11_mlp_fc1",
            "text_encoder_2.text_model.encoder.layers.11.mlp.fc1",
        ),
    ],
)
def test_names_of_sdxls_original_code(flat: str, path: str) -> None:
    assert kohya.layer_path(flat) == path


@pytest.mark.parametrize(
    "flat", ["lora_transformer_single_blocks_0", "lora_unet_output_blocks_2_7_conv"]
)
def test_names_of_other_models_are_refused(flat: str) -> None:
    with pytest.raises(FormatError, match="is of no"):
        kohya.layer_path(flat)


def test_our_metadata_comes_back(tmp_path: Path) -> None:
    info = AdapterInfo("robot-lora", method="lora", trigger_words=("sks",), title="Robot")
    save_file(one_layer(), tmp_path / "a.safetensors", metadata=metadata.encode(info))
    assert Adapter.load(tmp_path / "a.safetensors").info == info


def one_layer(
    down: tuple[int, ...] = (2, 5), up: tuple[int, ...] = (4, 2), **more: Tensor
) -> dict[str, Tensor]:
    return {
        "unet.a.to_q.lora_A.weight": torch.ones(down),
        "unet.a.to_q.lora_B.weight": torch.ones(up),
        **{name.replace("__", "."): tensor for name, tensor in more.items()},
    }


OLD_NAMES = {
    "unet.a.processor.to_q_lora.down.weight": "unet.a.to_q.weight",
    "unet.a.processor.to_out_lora.down.weight": "unet.a.to_out.0.weight",
    "unet.a.to_q.lora.down.weight": "unet.a.to_q.weight",
    "unet.a.to_q.lora_A.default.weight": "unet.a.to_q.weight",
    "text_encoder.text_model.encoder.q_proj.lora_linear_layer.down.weight": (
        "text_encoder.text_model.encoder.q_proj.weight"
    ),
}


@pytest.mark.parametrize("down", OLD_NAMES)
def test_older_names(tmp_path: Path, down: str) -> None:
    up = down.replace("down", "up").replace("lora_A", "lora_B")
    save_file({down: torch.ones(2, 5), up: torch.ones(4, 2)}, tmp_path / "a.safetensors")
    adapter = Adapter.load(tmp_path / "a.safetensors")
    assert list(adapter.deltas) == [OLD_NAMES[down]]
    assert torch.equal(adapter.deltas[OLD_NAMES[down]].to_dense(), torch.full((4, 5), 2.0))


@pytest.mark.parametrize(
    ("state", "stated", "fault"),
    [
        (one_layer(down=(3, 5)), {}, "do not multiply"),
        (one_layer(down=(0, 5), up=(4, 0)), {}, "do not multiply"),
        (one_layer(down=(2,)), {}, "do not multiply"),
        (one_layer(up=(0, 2, 3, 3), down=(2, 5, 1, 1)), {}, "do not multiply"),
        (one_layer(up=(4, 2, 3, 3), down=(2, 5, 3, 3)), {}, "do not multiply"),
        (one_layer(down=(1, 2**15), up=(2**15, 1)), {}, "claim a weight"),
        ({"unet.a.to_q.lora_A.weight": torch.ones(2, 5)}, {}, "lacks one"),
        (one_layer(unet__a__to_q__dora_scale=torch.ones(1)), {}, "fits neither rows"),
        (one_layer(unet__a__to_q__lora_B__bias=torch.ones(4)), {}, "not part of a plain LoRA"),
        (one_layer(unet__a__to_q__alpha=torch.ones(2)), {}, "alpha"),
        (one_layer(unet__a__to_q__alpha=torch.tensor(float("nan"))), {}, "alpha"),
        (one_layer(unet__a__to_q__lora__down__weight=torch.ones(2, 5)), {}, "second"),
        (one_layer(unet__a__to_q__alpha=torch.tensor(1e300, dtype=torch.float64)), {}, "infinity"),
        (one_layer(), {"lora_adapter_metadata": "["}, "JSON"),
        (one_layer(), {"lora_adapter_metadata": "3"}, "JSON object"),
        (one_layer(), {"lora_adapter_metadata": '{"unet.lora_alpha": "x"}'}, "alpha"),
        (one_layer(), {"lora_adapter_metadata": f'{{"unet.lora_alpha": {"9" * 400}}}'}, "alpha"),
        (one_layer(), {"lora_adapter_metadata": '{"unet.use_dora": true}'}, "DoRA"),
        (one_layer(), {"shira.info": "{}"}, "damaged"),
        (
            {"x.to_q.lora_A.weight": torch.ones(2, 5), "x.to_q.lora_B.weight": torch.ones(4, 2)},
            {},
            "names no component",
        ),
    ],
)
def test_what_is_no_plain_lora_is_refused(
    tmp_path: Path, state: dict[str, Tensor], stated: dict[str, str], fault: str
) -> None:
    save_file(state, tmp_path / "a.safetensors", metadata=stated)
    with pytest.raises(FormatError, match=fault) as caught:
        Adapter.load(tmp_path / "a.safetensors")
    assert "a.safetensors" in str(caught.value)


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_a_damaged_file_is_never_another_error(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.getbasetemp() / "lora.safetensors"
    stated = {"lora_adapter_metadata": '{"unet.lora_alpha": 2, "unet.alpha_pattern": {"to_q": 3}}'}
    save_file(one_layer(unet__a__to_q__alpha=torch.tensor(2.0)), path, metadata=stated)
    damaged = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(damaged[: data.draw(st.integers(0, len(damaged)))])
    for load in (lora.load, Adapter.load):
        try:
            load(path)
        except FormatError:
            continue
