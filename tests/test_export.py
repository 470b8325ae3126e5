"""What leaves for other programs: LoRA by SVD and dense changes, named as they expect."""

import math
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from peft import LoraConfig, get_peft_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from shira_diffusion import formats
from shira_diffusion.adapter import Adapter, AdapterInfo
from shira_diffusion.components import component_modules
from shira_diffusion.delta import SparseDelta
from shira_diffusion.errors import FormatError, SettingError
from shira_diffusion.formats import Kind, diff, kohya, lora
from shira_diffusion.formats.kohya import Naming
from shira_diffusion.lowrank import LowRankDelta
from shira_diffusion.svd import factored

LAYERS = {
    "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q": (16, 16),
    "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k": (16, 32),
    "unet.down_blocks.1.resnets.0.conv1": (16, 8, 3, 3),
    "text_encoder.text_model.encoder.layers.0.self_attn.q_proj": (16, 16),
}


def random_sparse(shape: tuple[int, ...], seed: int, density: float = 0.2) -> SparseDelta:
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.rand(shape, generator=generator) < density
    return SparseDelta.from_dense(torch.randn(shape, generator=generator) * chosen)


def adapter() -> Adapter:
    deltas = {
        f"{layer}.weight": random_sparse(shape, seed)
        for seed, (layer, shape) in enumerate(LAYERS.items())
    }
    return Adapter(deltas, AdapterInfo("mine", trigger_words=("sks",)))


def product(state: dict[str, Tensor], down: str, up: str) -> Tensor:
    rows = state[up].shape[0]
    flat = state[up].float().reshape(rows, -1) @ state[down].float().flatten(1)
    return flat.reshape(rows, *state[down].shape[1:])


@pytest.mark.parametrize("rank", [1, 4, 16])
def test_the_lora_is_the_best_of_its_rank(tmp_path: Path, rank: int) -> None:
    told: list[tuple[int, int]] = []
    energy = lora.save(
        adapter(),
        tmp_path / "a.safetensors",
        rank,
        dtype=torch.float32,
        progress=lambda done, total: told.append((done, total)),
    )
    assert told == [(done, len(LAYERS)) for done in range(len(LAYERS) + 1)]
    state = load_file(tmp_path / "a.safetensors")
    for layer in LAYERS:
        dense = adapter().deltas[f"{layer}.weight"].to_dense()
        found = product(state, f"{layer}.lora_A.weight", f"{layer}.lora_B.weight")
        values = torch.linalg.svdvals(dense.flatten(1).double())
        best = float((values[:rank] ** 2).sum() / (values**2).sum())
        assert energy.shares[f"{layer}.weight"] == pytest.approx(best, abs=1e-5)
        lost = float(((found - dense) ** 2).double().sum())
        assert energy.lost[f"{layer}.weight"] == pytest.approx(lost, rel=1e-6, abs=1e-8)
        assert state[f"{layer}.lora_A.weight"].shape[0] == rank
    again = Adapter.load(tmp_path / "a.safetensors")
    assert again.info.trigger_words == ("sks",)
    assert all(isinstance(one, LowRankDelta) for one in again.deltas.values())


def test_large_weights_come_close_to_the_best(tmp_path: Path) -> None:
    dense = random_sparse((400, 300), 0, 0.01)
    kept = factored(dense, 20)
    values = torch.linalg.svdvals(dense.to_dense().double())
    best = float((values[20:] ** 2).sum())
    assert best <= kept.lost <= 1.02 * best
    again = factored(dense, 20)
    assert torch.equal(again.up, kept.up)


@pytest.mark.parametrize("along", ["rows", "columns", "nothing"])
def test_a_change_within_few_rows_or_columns_is_exact(tmp_path: Path, along: str) -> None:
    dense = torch.zeros(40, 30)
    generator = torch.Generator().manual_seed(0)
    if along == "rows":
        dense[[3, 7, 39]] = torch.randn(3, 30, generator=generator).half().float()
    elif along == "columns":
        dense[:, [0, 2, 29]] = torch.randn(40, 3, generator=generator).half().float()
    one = Adapter({"unet.mid_block.x.weight": SparseDelta.from_dense(dense)}, AdapterInfo("a"))
    energy = lora.save(one, tmp_path / "a.safetensors", 3)
    assert (energy.kept, energy.error) == (1.0, 0.0)
    again = Adapter.load(tmp_path / "a.safetensors").deltas["unet.mid_block.x.weight"]
    assert torch.equal(again.to_dense(), dense)


def test_a_lora_of_smaller_rank_stays_what_it_is(tmp_path: Path) -> None:
    delta = LowRankDelta(torch.randn(6, 2).half(), torch.randn(2, 5).half(), 1.0, (6, 5))
    one = Adapter({"unet.mid_block.x.weight": delta}, AdapterInfo("a"))
    assert lora.save(one, tmp_path / "a.safetensors", 4).kept == 1.0
    again = Adapter.load(tmp_path / "a.safetensors").deltas["unet.mid_block.x.weight"]
    assert torch.equal(again.to_dense(), delta.to_dense())


# That diffusers maps the other naming to the same layers is in test_names, on SDXL's own config.
@pytest.mark.parametrize("naming", [None, Naming.DIFFUSERS])
def test_diffusers_reads_the_lora(
    tmp_path: Path, toy_pipe: StableDiffusionXLPipeline, naming: Naming | None
) -> None:
    deltas = {}
    parts = component_modules(toy_pipe)
    # diffusers takes a text encoder's kohya file for one only if out_proj is in it.
    endings = ["to_q.weight", "to_out.0.weight"], ["q_proj.weight", "out_proj.weight"]
    pairs = [("unet", one) for one in endings[0]] + [("text_encoder_2", one) for one in endings[1]]
    for number, (part, ending) in enumerate(pairs):
        for name, weight in parts[part].named_parameters():
            if name.endswith(ending):
                deltas[f"{part}.{name}"] = random_sparse(tuple(weight.shape), number)
    one = Adapter(deltas, AdapterInfo("a"))
    lora.save(one, tmp_path / "a.safetensors", 4, naming=naming, dtype=torch.float32)
    base = {
        name: parts[name.partition(".")[0]].get_parameter(name.partition(".")[2]).detach().clone()
        for name in one.deltas
    }
    toy_pipe.load_lora_weights(tmp_path, weight_name="a.safetensors")
    toy_pipe.fuse_lora()
    again = Adapter.load(tmp_path / "a.safetensors")
    assert set(again.deltas) == set(one.deltas)
    for name, weight in base.items():
        part, _, path = name.partition(".")
        module = component_modules(toy_pipe)[part]
        layer = module.get_submodule(path.removesuffix(".weight"))
        fused = layer.base_layer.weight
        torch.testing.assert_close(
            fused, weight + again.deltas[name].to_dense(), rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("naming", Naming)
def test_kohyas_lora_has_alphas_and_flat_names(tmp_path: Path, naming: Naming) -> None:
    lora.save(adapter(), tmp_path / "a.safetensors", 2, naming=naming)
    state = load_file(tmp_path / "a.safetensors")
    flat = {kohya.flat_name(layer, naming) for layer in LAYERS}
    assert {name.split(".")[0] for name in state} == flat
    assert all(state[f"{name}.alpha"] == 2.0 for name in flat)
    again = Adapter.load(tmp_path / "a.safetensors")
    assert set(again.deltas) == set(adapter().deltas)


@pytest.mark.parametrize(
    ("name", "shape"), [("unet.conv_in.bias", (4,)), ("unet.conv_in.x", (4, 4))]
)
def test_what_no_lora_can_change(tmp_path: Path, name: str, shape: tuple[int, ...]) -> None:
    one = Adapter({name: random_sparse(shape, 0, 1.0)}, AdapterInfo("a"))
    with pytest.raises(FormatError, match=f"changes '{name}'"):
        lora.save(one, tmp_path / "a.safetensors", 2)
    with pytest.raises(SettingError, match="rank"):
        lora.save(adapter(), tmp_path / "a.safetensors", 0)
    assert list(tmp_path.iterdir()) == []


def test_a_lora_folder_of_peft(tmp_path: Path, toy_pipe: StableDiffusionXLPipeline) -> None:
    torch.manual_seed(0)
    config = LoraConfig(
        r=2,
        lora_alpha=3,
        target_modules=["to_q"],
        use_rslora=True,
        init_lora_weights=False,
        alpha_pattern={"attn2.to_q": 5},
    )
    before = {name: one.detach().clone() for name, one in toy_pipe.unet.named_parameters()}
    model = get_peft_model(toy_pipe.unet, config)
    model.save_pretrained(tmp_path)
    after = dict(model.merge_and_unload().named_parameters())
    found = formats.load(tmp_path)
    assert formats.kind(tmp_path) is Kind.LORA
    for name, delta in found.deltas.items():
        path = name.removeprefix("unet.")
        torch.testing.assert_close(before[path] + delta.to_dense(), after[path])
    assert len(found.deltas) == sum(name.endswith("to_q.weight") for name in before)


@pytest.mark.parametrize("naming", Naming)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_dense_changes_there_and_back(tmp_path: Path, naming: Naming, dtype: torch.dtype) -> None:
    deltas = {name: one.to(dtype=dtype) for name, one in adapter().deltas.items()}
    deltas["unet.conv_in.bias"] = random_sparse((4,), 9, 1.0).to(dtype=dtype)
    one = Adapter(deltas, adapter().info)
    told = diff.size(one, dtype=dtype)
    written = diff.save(one, tmp_path / "a.safetensors", naming=naming, dtype=dtype)
    assert written == (tmp_path / "a.safetensors").stat().st_size
    assert 0 < written - told < 4000
    with safe_open(tmp_path / "a.safetensors", framework="pt") as file:
        keys = set(file.keys())
    expected = {f"{kohya.flat_name(layer, naming)}.diff" for layer in LAYERS}
    bias = kohya.flat_name("unet.conv_in", naming)
    assert keys == expected | {f"{bias}.diff_b"}
    again = Adapter.load(tmp_path / "a.safetensors")
    assert formats.kind(tmp_path / "a.safetensors") is Kind.DIFF
    assert again.info == one.info
    for name, delta in one.deltas.items():
        assert torch.equal(again.deltas[name].indices, delta.indices)
        assert torch.equal(again.deltas[name].values, delta.values)


def test_dense_changes_of_a_lora_beside_its_factors(tmp_path: Path) -> None:
    norm = "lora_unet_input_blocks_4_1_norm"
    state = {
        f"{norm}.diff": torch.tensor([0.0, 2.0]),
        f"{norm}.diff_b": torch.tensor([1.0, 0.0]),
        "lora_unet_middle_block_1_proj_in.lora_down.weight": torch.ones(1, 3),
        "lora_unet_middle_block_1_proj_in.lora_up.weight": torch.ones(2, 1),
    }
    save_file(state, tmp_path / "a.safetensors")
    found = Adapter.load(tmp_path / "a.safetensors").deltas
    layer = "unet.down_blocks.1.attentions.0.norm"
    assert found[f"{layer}.weight"].to_dense().tolist() == [0.0, 2.0]
    assert found[f"{layer}.bias"].to_dense().tolist() == [1.0, 0.0]
    assert found["unet.mid_block.attentions.0.proj_in.weight"].density == 1.0


@pytest.mark.parametrize(
    ("state", "fault"),
    [
        ({"lora_unet_conv_in.diff": torch.ones(2).int()}, "neither fp16"),
        ({"lora_unet_conv_in.diff": torch.tensor([math.nan])}, "NaN"),
        ({"lora_unet_x_y.diff": torch.ones(1), "x": torch.ones(1)}, "'x' is no dense change"),
        ({"x.diff": torch.ones(1)}, "names no component"),
        (
            {"lora_unet_conv_in.diff": torch.ones(1), "unet.conv_in.diff": torch.ones(1)},
            "second change",
        ),
    ],
)
def test_wrong_dense_changes(tmp_path: Path, state: dict[str, Tensor], fault: str) -> None:
    save_file(state, tmp_path / "a.safetensors")
    with pytest.raises(FormatError, match=fault):
        Adapter.load(tmp_path / "a.safetensors")


def test_dense_changes_that_cannot_be_written(tmp_path: Path) -> None:
    large = SparseDelta.from_dense(torch.full((2,), 1e5))
    one = Adapter({"unet.conv_in.weight": large}, AdapterInfo("a"))
    with pytest.raises(FormatError, match=r"leaves the range of torch\.float16"):
        diff.save(one, tmp_path / "a.safetensors")
    with pytest.raises(SettingError, match="fp16, bf16 or fp32"):
        diff.save(one, tmp_path / "a.safetensors", dtype=torch.float64)
    stranger = Adapter({"unet.x.y": large}, AdapterInfo("a"))
    with pytest.raises(FormatError, match=r"'unet\.x\.y' has no name"):
        diff.save(stranger, tmp_path / "a.safetensors")
    assert list(tmp_path.iterdir()) == []
