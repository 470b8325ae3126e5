"""PEFT's SHiRA, both ways, with PEFT itself as the judge: a UNet and a Llama."""

import json
import math
import re
from pathlib import Path

import peft
import pytest
import torch
from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel
from peft import PeftModel, ShiraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from emoji_xl.architecture import TOY, build_unet
from shira_diffusion import formats
from shira_diffusion.adapter import Adapter, AdapterInfo
from shira_diffusion.delta import SparseDelta
from shira_diffusion.errors import FormatError
from shira_diffusion.formats import peft as peft_format
from shira_diffusion.lowrank import LowRankDelta
from shira_diffusion.pipeline import load_adapters
from shira_diffusion.switch import AdapterSwitcher

TARGETS = {"unet": ["to_q", "to_k", "to_v", "to_out.0"], "llama": ["q_proj", "v_proj", "up_proj"]}


def unet() -> UNet2DConditionModel:
    torch.manual_seed(0)
    return build_unet(TOY).eval()


def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    return LlamaForCausalLM(config).eval()


MODELS = {"unet": unet, "llama": llama}


def output(kind: str, model: nn.Module) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        if kind == "llama":
            return model(torch.randint(0, 50, (2, 7), generator=generator)).logits
        size = TOY.text_width + TOY.text_2_width
        return model(
            torch.randn(1, 4, 8, 8, generator=generator),
            torch.tensor(500),
            torch.randn(1, 5, size, generator=generator),
            added_cond_kwargs={
                "text_embeds": torch.randn(1, TOY.text_2_width, generator=generator),
                "time_ids": torch.ones(1, 6),
            },
        ).sample


def trained(kind: str, folder: Path, r: int = 3) -> Tensor:
    """What PEFT gives with a SHiRA of random values, which it saves in `folder`."""
    config = ShiraConfig(r=r, target_modules=TARGETS[kind], random_seed=7, init_weights=False)
    torch.manual_seed(3)
    model = get_peft_model(MODELS[kind](), config).eval()
    model.save_pretrained(folder)
    return output(kind, model)


def shapes_of(model: nn.Module, component: str = "") -> dict[str, tuple[int, ...]]:
    return {component + name: tuple(one.shape) for name, one in model.named_parameters()}


def switched(kind: str, adapter: Adapter) -> Tensor:
    """What the model gives with the adapter in it."""
    model = MODELS[kind]()
    switcher = AdapterSwitcher({"unet": model} if kind == "unet" else model)
    switcher.add("a", adapter)
    with switcher.using({"a": 1.0}):
        return output(kind, model)


@pytest.mark.parametrize("kind", MODELS)
def test_what_peft_saves_gives_the_same_output_here(tmp_path: Path, kind: str) -> None:
    theirs = trained(kind, tmp_path)
    model = MODELS[kind]()
    assert not torch.allclose(theirs, output(kind, model))
    adapter = formats.load(tmp_path, shapes=shapes_of(model, "unet." if kind == "unet" else ""))
    assert adapter.info.mask == "rand"
    torch.testing.assert_close(switched(kind, adapter), theirs, rtol=1e-5, atol=1e-6)


def sparse(kind: str, component: str, seed: int = 0) -> Adapter:
    """An adapter with another number of entries in every layer, one of them without any."""
    generator = torch.Generator().manual_seed(seed)
    deltas = {}
    wanted = tuple(f"{target}.weight" for target in TARGETS[kind])
    named = [one for one in MODELS[kind]().named_parameters() if one[0].endswith(wanted)]
    for number, (name, weight) in enumerate(named):
        chosen = torch.rand(weight.shape, generator=generator) < 0.02 * (number % 4)
        dense = torch.randn(weight.shape, generator=generator) * chosen
        deltas[component + name] = SparseDelta.from_dense(dense)
    return Adapter(deltas, AdapterInfo("mine", base_model="the base"))


@pytest.mark.parametrize("kind", MODELS)
def test_what_we_save_gives_the_same_output_in_peft(tmp_path: Path, kind: str) -> None:
    adapter = sparse(kind, "unet." if kind == "unet" else "")
    padding = peft_format.save(adapter, tmp_path)
    model = PeftModel.from_pretrained(MODELS[kind](), tmp_path).eval()
    config = model.peft_config["default"]
    assert (config.peft_type, config.r) == (peft.PeftType.SHIRA, padding.r)
    found = {
        name.removeprefix("base_model.model.")
        for name, module in model.named_modules()
        if hasattr(module, "shira_weight") and isinstance(module.shira_weight, nn.ParameterDict)
    }
    start = "unet." if kind == "unet" else ""
    assert {f"{start}{name}.weight" for name in found} == set(adapter.deltas)
    torch.testing.assert_close(output(kind, model), switched(kind, adapter), rtol=1e-5, atol=1e-6)
    r = max(math.ceil(one.nnz / sum(one.shape)) for one in adapter.deltas.values())
    assert (padding.r, padding.entries) == (r, adapter.nnz)
    state = load_file(tmp_path / "adapter_model.safetensors")
    counts = sum(one.numel() for name, one in state.items() if name.endswith("weight"))
    assert padding.added == counts - adapter.nnz


@pytest.mark.parametrize("kind", MODELS)
def test_ours_there_and_back(tmp_path: Path, kind: str) -> None:
    adapter = sparse(kind, "unet." if kind == "unet" else "")
    peft_format.save(adapter, tmp_path / "a")
    again = Adapter.load(tmp_path / "a")
    assert again.info == adapter.info
    assert list(again.deltas) == list(adapter.deltas)
    for name, delta in adapter.deltas.items():
        assert torch.equal(again.deltas[name].indices, delta.indices)
        assert torch.equal(again.deltas[name].values, delta.values)
        assert again.deltas[name].shape == delta.shape


@pytest.mark.parametrize("kind", MODELS)
def test_peft_saves_again_what_it_loaded_of_ours(tmp_path: Path, kind: str) -> None:
    peft_format.save(sparse(kind, "unet." if kind == "unet" else ""), tmp_path / "a")
    PeftModel.from_pretrained(MODELS[kind](), tmp_path / "a").save_pretrained(tmp_path / "b")
    ours, theirs = (load_file(tmp_path / name / "adapter_model.safetensors") for name in "ab")
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype
        assert torch.equal(tensor, theirs[name])


def test_text_encoders_are_saved_under_their_modules_names(
    tmp_path: Path, toy_pipe: StableDiffusionXLPipeline
) -> None:
    generator = torch.Generator().manual_seed(0)
    deltas = {}
    for part in ("text_encoder", "text_encoder_2"):
        for name, weight in getattr(toy_pipe, part).named_parameters():
            if name.endswith("q_proj.weight"):
                dense = torch.randn(weight.shape, generator=generator)
                dense[torch.rand(weight.shape, generator=generator) > 0.1] = 0
                deltas[f"{part}.{name}"] = SparseDelta.from_dense(dense)
    adapter = Adapter(deltas, AdapterInfo("both"))
    with pytest.raises(FormatError, match=r"serves one module.*text_encoder, text_encoder_2"):
        peft_format.save(adapter, tmp_path / "none")
    assert not (tmp_path / "none").exists()
    for part in ("text_encoder", "text_encoder_2"):
        peft_format.save(adapter, tmp_path / part, component=part)
        module = getattr(toy_pipe, part)
        weights = dict(module.named_parameters())
        expected = {
            name: weights[name].detach().clone()
            for name in weights
            if name.endswith("q_proj.weight")
        }
        for name in expected:
            stored = next(
                one
                for key, one in adapter.deltas.items()
                if key.endswith(f".{name}") and key.startswith(f"{part}.")
            )
            expected[name] += stored.to_dense()
        merged = PeftModel.from_pretrained(module, tmp_path / part).merge_and_unload()
        after = dict(merged.named_parameters())
        assert expected
        for name, weight in expected.items():
            torch.testing.assert_close(after[name], weight)


def test_windows_indices(tmp_path: Path) -> None:
    trained("llama", tmp_path)
    shapes = shapes_of(llama())
    linux = formats.load(tmp_path, shapes=shapes)
    file = tmp_path / "adapter_model.safetensors"
    state = {
        name: one.float() if name.endswith("indices") else one
        for name, one in load_file(file).items()
    }
    save_file(state, file)
    windows = formats.load(tmp_path, shapes=shapes)
    for name, delta in linux.deltas.items():
        assert torch.equal(windows.deltas[name].indices, delta.indices)
        assert torch.equal(windows.deltas[name].values, delta.values)


def test_shapes_are_worked_out_where_the_file_settles_them(tmp_path: Path) -> None:
    trained("llama", tmp_path, r=9)
    adapter = formats.load(tmp_path)
    expected = shapes_of(llama())
    assert {name: one.shape for name, one in adapter.deltas.items()} == {
        name: expected[name] for name in adapter.deltas
    }


def test_a_pipeline_tells_the_shapes(tmp_path: Path, toy_pipe: StableDiffusionXLPipeline) -> None:
    trained("unet", tmp_path / "mine", r=1)
    with pytest.raises(FormatError, match="cannot be told"):
        formats.load(tmp_path / "mine")
    before = {name: one.detach().clone() for name, one in toy_pipe.unet.named_parameters()}
    switcher = load_adapters(toy_pipe, tmp_path / "mine", strength=0.5)
    assert switcher.active == {"mine": 0.5}
    state = load_file(tmp_path / "mine" / "adapter_model.safetensors")
    for name, weight in toy_pipe.unet.named_parameters():
        key = f"base_model.model.{name.removesuffix('.weight')}"
        expected = before[name].clone()
        if f"{key}.shira_weight" in state:
            rows, columns = state[f"{key}.shira_indices"].long()
            expected[rows, columns] += 0.5 * state[f"{key}.shira_weight"]
        assert torch.equal(weight, expected), name


LAYER = "base_model.model.a.q_proj"
GOOD = {
    f"{LAYER}.shira_weight": torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]),
    f"{LAYER}.shira_indices": torch.tensor([[0, 0, 1, 1, 1], [0, 2, 0, 1, 2]], dtype=torch.int32),
}
CONFIG = {"peft_type": "SHIRA", "r": 1, "mask_type": "random"}


def forged(folder: Path, state: dict[str, Tensor], config: object = CONFIG) -> Path:
    save_file(
        {name: tensor.clone() for name, tensor in state.items()},
        folder / "adapter_model.safetensors",
    )
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def test_the_forger_can_write_a_good_folder(tmp_path: Path) -> None:
    delta = peft_format.load(forged(tmp_path, GOOD)).deltas["a.q_proj.weight"]
    assert torch.equal(delta.to_dense(), torch.tensor([[1.0, 0, 2], [3, 4, 5]]))


def with_indices(values: list[list[float]], dtype: torch.dtype = torch.int32) -> dict[str, Tensor]:
    return {**GOOD, f"{LAYER}.shira_indices": torch.tensor(values).to(dtype)}


@pytest.mark.parametrize(
    ("state", "config", "fault"),
    [
        (GOOD, {**CONFIG, "peft_type": "LORA"}, "'LORA', not a SHiRA"),
        (GOOD, {**CONFIG, "fan_in_fan_out": True}, "fan_in_fan_out"),
        (GOOD, {**CONFIG, "r": 2}, "not r = 2 times"),
        (GOOD, {**CONFIG, "r": 0}, "without adapter_config"),
        (GOOD, {**CONFIG, "r": True}, "without adapter_config"),
        (GOOD, [], "no JSON object"),
        ({**GOOD, "x": torch.ones(1)}, CONFIG, "'x' is not part"),
        ({**GOOD, f"{LAYER}.shira_weight": torch.ones(4)}, CONFIG, r"\(2, 5\), not \(2, 4\)"),
        ({**GOOD, f"{LAYER}.shira_weight": torch.ones(5).int()}, CONFIG, "not flat numbers"),
        ({**GOOD, f"{LAYER}.shira_weight": torch.full((5,), math.nan)}, CONFIG, "NaN"),
        ({**GOOD, f"{LAYER}.shira_weight": torch.full((5,), math.inf)}, CONFIG, "infinity"),
        ({f"{LAYER}.shira_indices": GOOD[f"{LAYER}.shira_indices"]}, CONFIG, "lacks"),
        (with_indices([[0, 0, 1, 1, 1], [0, 2, 0, 0, 2]]), CONFIG, "unique"),
        (with_indices([[0, 0, 1, 1, -1], [0, 2, 0, 1, 2]]), CONFIG, "run from -1"),
        (with_indices([[0, 0, 1, 1, 9], [0, 2, 0, 1, 2]]), CONFIG, "not r = 1 times"),
        (with_indices([[0, 0, 0, 0, 0], [0, 1, 2, 0, 1]]), CONFIG, "cannot be told|unique"),
        (with_indices([[0, 0, 1, 1, 0.5], [0, 2, 0, 1, 2]], torch.float32), CONFIG, "whole"),
        (with_indices([[0, 0, 1, 1, math.nan], [0, 2, 0, 1, 2]], torch.float32), CONFIG, "whole"),
        (with_indices([[0, 0, 1, 1, math.inf], [0, 2, 0, 1, 2]], torch.float32), CONFIG, "whole"),
        (with_indices([[0, 0, 1, 1, 2.0**30], [0, 2, 0, 1, 2]]), CONFIG, "run from 0 to"),
        (with_indices([[0, 0, 1, 1, 1], [0, 2, 0, 1, 2]], torch.float64), CONFIG, "neither int32"),
    ],
)
def test_what_is_wrong_is_refused(
    tmp_path: Path, state: dict[str, Tensor], config: object, fault: str
) -> None:
    with pytest.raises(FormatError, match=fault) as caught:
        formats.load(forged(tmp_path, state, config))
    assert str(tmp_path) in str(caught.value)


def test_known_shapes_must_fit(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=re.escape("reach row 1 and column 2")):
        formats.load(forged(tmp_path, GOOD), shapes={"a.q_proj.weight": (2, 2)})


@pytest.mark.parametrize(
    ("name", "shape", "fault"),
    [
        ("unet.conv_in.weight", (4, 3, 3, 3), "linear layers alone"),
        ("unet.conv_in.bias", (4,), "linear layers alone"),
        ("unet.a.weight", (3, 3), "more than 'unet.a.weight'"),
    ],
)
def test_what_peft_cannot_hold_is_refused(
    tmp_path: Path, name: str, shape: tuple[int, ...], fault: str
) -> None:
    adapter = Adapter({name: SparseDelta.from_dense(torch.ones(shape))}, AdapterInfo("a"))
    with pytest.raises(FormatError, match=fault):
        peft_format.save(adapter, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_lora_is_refused_before_its_entries_are_made(tmp_path: Path) -> None:
    factors = LowRankDelta(torch.ones(6, 2), torch.ones(2, 5), 1.0, (6, 5))
    one = Adapter({"unet.mid_block.x.weight": factors}, AdapterInfo("x", method="lora"))
    with pytest.raises(FormatError, match=r"'unet\.mid_block\.x\.weight' is a LoRA's.*--density"):
        peft_format.save(one, tmp_path / "peft")
    assert not (tmp_path / "peft").exists()
