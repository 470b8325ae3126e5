"""Whole checkpoints: read by name, extracted from, and baked into, folder and single file."""

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from emoji_xl.architecture import TOY, assemble, build_pipeline, save_pipeline
from emoji_xl.vocabulary import learn_tokenizer
from shira_diffusion.adapter import Adapter, AdapterInfo
from shira_diffusion.bake import bake
from shira_diffusion.components import component_modules
from shira_diffusion.delta import SparseDelta
from shira_diffusion.errors import FormatError, MismatchError, SettingError
from shira_diffusion.fingerprint import fingerprint
from shira_diffusion.formats.checkpoint import Checkpoint
from shira_diffusion.lowrank import DoraDelta, LowRankDelta
from shira_diffusion.pipeline import load_base
from shira_diffusion.sparsify import extract, sparsify
from shira_diffusion.switch import AdapterSwitcher
from tests.original_names import checkpoint_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny SDXL with SDXL's own number of layers in a block, fp16."""
    path = tmp_path_factory.mktemp("checkpoint") / "base"
    # diffusers tells the two text encoders of a checkpoint apart by their widths.
    size = dataclasses.replace(TOY, text_2_width=32)
    tokenizer = learn_tokenizer(["a red apple"], tokens=600, prompt_tokens=size.prompt_tokens)
    pipe = build_pipeline(size, tokenizer)
    torch.manual_seed(0)
    unet = UNet2DConditionModel.from_config({**pipe.unet.config, "layers_per_block": 2})
    save_pipeline(assemble({**pipe.components, "unet": unet}), path)
    return path


@pytest.fixture(scope="module")
def single(folder: Path) -> Path:
    """The same as one file."""
    path = folder.parent / "model.safetensors"
    state = checkpoint_of(load_base(folder, dtype=torch.float16))
    save_file(state, path, metadata={"modelspec.title": "Tiny", "modelspec.hash_sha256": "0x1"})
    return path


@pytest.fixture(params=["folder", "single"])
def base(request: pytest.FixtureRequest, folder: Path, single: Path) -> Path:
    return folder if request.param == "folder" else single


def loaded(path: Path, folder: Path) -> StableDiffusionXLPipeline:
    config = None if path.is_dir() else folder
    return load_base(path, config=config, dtype=torch.float16)


def weights(pipe: StableDiffusionXLPipeline) -> dict[str, Tensor]:
    return {
        f"{part}.{name}": weight.detach().clone()
        for part, module in component_modules(pipe).items()
        for name, weight in module.named_parameters()
    }


def test_every_weight_by_its_name(base: Path, folder: Path) -> None:
    pipe, checkpoint = load_base(folder, dtype=torch.float16), Checkpoint(base)
    expected = weights(pipe)
    assert len(list(checkpoint)) == len(expected)
    for name, weight in expected.items():
        assert checkpoint.shape(name) == tuple(weight.shape)
        assert torch.equal(checkpoint.read(name), weight), name
    modules = component_modules(pipe)
    assert checkpoint.fingerprints() == {part: fingerprint(one) for part, one in modules.items()}
    with pytest.raises(MismatchError, match=r"no weight 'unet\.x'.*nearest|there are"):
        checkpoint.read("unet.x")


def test_a_component_alone(folder: Path, tmp_path: Path) -> None:
    alone = Checkpoint(folder / "unet")
    whole = Checkpoint(folder)
    assert set(alone) == {name for name in whole if name.startswith("unet.")}
    assert alone.fingerprints()["unet"] == whole.fingerprints()["unet"]
    shutil.copytree(folder / "unet", tmp_path / "twice")
    weights_file = next((tmp_path / "twice").glob("*.safetensors"))
    shutil.copy(weights_file, tmp_path / "twice" / "copy.safetensors")
    with pytest.raises(FormatError, match="second time"):
        Checkpoint(tmp_path / "twice")


def test_what_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"no \.safetensors"):
        Checkpoint(tmp_path)
    with pytest.raises(FormatError, match="no such file"):
        Checkpoint(tmp_path / "missing.safetensors")
    save_file({"x": torch.ones(1)}, tmp_path / "a.safetensors")
    with pytest.raises(FormatError, match="holds no weights of SDXL"):
        Checkpoint(tmp_path / "a.safetensors")
    in_proj = "conditioner.embedders.1.model.transformer.resblocks.0.attn.in_proj_weight"
    for state in ({in_proj: torch.ones(4, 2)}, {in_proj: torch.tensor(1.0)}):
        save_file(state, tmp_path / "a.safetensors")
        with pytest.raises(FormatError, match="in_proj_weight"):
            Checkpoint(tmp_path / "a.safetensors")
    projection = "conditioner.embedders.1.model.text_projection"
    save_file({projection: torch.ones(2, 2, 2)}, tmp_path / "a.safetensors")
    with pytest.raises(FormatError, match="text_projection"):
        Checkpoint(tmp_path / "a.safetensors")


def adapters(checkpoint: Checkpoint) -> list[tuple[Adapter, float]]:
    """A sparse one over everything, a LoRA and a DoRA, with strengths."""
    generator = torch.Generator().manual_seed(0)
    sparse = {}
    for name, shape in checkpoint.shapes.items():
        chosen = torch.rand(shape, generator=generator) < 0.1
        dense = torch.randn(shape, generator=generator) * 0.1 * chosen
        sparse[name] = SparseDelta.from_dense(dense.half())
    matrices = [name for name in checkpoint if name.endswith(("q_proj.weight", "to_q.weight"))]

    def factors(name: str) -> tuple[Tensor, Tensor, float, tuple[int, ...]]:
        rows, columns = checkpoint.shape(name)
        up, down = (
            torch.randn(rows, 2, generator=generator),
            torch.randn(2, columns, generator=generator),
        )
        return up, down, 0.1, (rows, columns)

    low = {name: LowRankDelta(*factors(name)) for name in matrices}
    turned = {
        name: DoraDelta(
            *factors(name), torch.rand(checkpoint.shape(name)[0], 1, generator=generator)
        )
        for name in matrices[::2]
    }
    marks = checkpoint.fingerprints()
    return [
        (Adapter(sparse, AdapterInfo("sparse", base_fingerprint=marks)), 0.7),
        (Adapter(low, AdapterInfo("low")), -0.4),
        (Adapter(turned, AdapterInfo("turned")), 1.0),
    ]


def test_what_is_baked_is_the_mix_in_a_model(base: Path, folder: Path, tmp_path: Path) -> None:
    mix = adapters(Checkpoint(base))
    told: list[tuple[int, int]] = []
    before = {file: file.read_bytes() for file in [base, *base.rglob("*")] if file.is_file()}
    out = bake(base, mix, tmp_path / base.name, lambda done, total: told.append((done, total)))
    pipe = loaded(base, folder)
    switcher = AdapterSwitcher(pipe)
    for number, (adapter, _) in enumerate(mix):
        switcher.add(str(number), adapter)
    switcher.set({str(number): strength for number, (_, strength) in enumerate(mix)})
    expected, found = weights(pipe), weights(loaded(out, folder))
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        assert torch.equal(found[name], weight), name
    assert told == [(number + 1, len(expected)) for number in range(len(expected))]
    assert all(file.read_bytes() == data for file, data in before.items())
    assert sorted(tmp_path.iterdir()) == [out]


def test_the_rest_stays_byte_for_byte(base: Path, tmp_path: Path) -> None:
    name = "text_encoder_2.text_model.encoder.layers.0.self_attn.k_proj.weight"
    dense = torch.zeros(Checkpoint(base).shape(name))
    dense[3, 2] = 0.5
    adapter = Adapter({name: SparseDelta.from_dense(dense)}, AdapterInfo("one"))
    out = bake(base, [(adapter, 1.0)], tmp_path / base.name)
    files = [file for file in base.rglob("*") if file.is_file()] if base.is_dir() else [base]
    differing = 0
    for file in files:
        copy = out / file.relative_to(base) if base.is_dir() else out
        if file.suffix != ".safetensors":
            assert copy.read_bytes() == file.read_bytes()
            continue
        ours, theirs = load_file(copy), load_file(file)
        assert ours.keys() == theirs.keys()
        for key, tensor in theirs.items():
            assert ours[key].dtype == tensor.dtype
            differing += int((ours[key] != tensor).sum())
    assert differing == 1


def test_other_copies_of_the_weights_are_left_out(folder: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(folder, source)
    for stale in ("unet/model.fp16.safetensors", "unet/old.bin", "text_encoder/x.msgpack"):
        (source / stale).write_bytes(b"old weights")
    (source / "README.md").write_text("hello")
    out = bake(source, [], tmp_path / "out")
    copied = {file.relative_to(out) for file in out.rglob("*") if file.is_file()}
    original = {file.relative_to(folder) for file in folder.rglob("*") if file.is_file()}
    assert copied == original | {Path("README.md")}


def test_what_does_not_fit_is_not_baked(base: Path, tmp_path: Path) -> None:
    checkpoint = Checkpoint(base)
    name = next(iter(checkpoint))
    one = SparseDelta.from_dense(torch.ones(checkpoint.shape(name)))
    other = dict.fromkeys(checkpoint.fingerprints(), "another")
    out = tmp_path / "out.safetensors"
    for deltas, info, fault in (
        ({"unet.x.weight": one}, {}, "no weight"),
        ({name: SparseDelta.from_dense(torch.ones(3))}, {}, r"changes .* as \(3,\)"),
        ({name: one}, {"base_fingerprint": other}, "is not that of"),
        ({name: SparseDelta.from_dense(torch.full(one.shape, 6e4))}, {}, "leaves the range"),
    ):
        with pytest.raises(MismatchError, match=fault):
            bake(base, [(Adapter(deltas, AdapterInfo("a", **info)), 2.0)], out)
        assert list(tmp_path.iterdir()) == []
    out.write_bytes(b"mine")
    with pytest.raises(SettingError, match="there already"):
        bake(base, [], out)
    assert out.read_bytes() == b"mine"


@pytest.fixture
def tuned(base: Path, tmp_path: Path) -> Path:
    """The base with all of its matrices changed, a few entries by much, and one bias."""
    checkpoint = Checkpoint(base)
    generator = torch.Generator().manual_seed(9)
    deltas = {}
    for name, shape in checkpoint.shapes.items():
        if len(shape) > 1 and "mid_block" in name:
            dense = torch.randn(shape, generator=generator) * 0.01
            dense += 0.5 * (torch.rand(shape, generator=generator) < 0.05)
            deltas[name] = SparseDelta.from_dense(dense)
    deltas["unet.conv_in.bias"] = SparseDelta.from_dense(torch.ones(TOY.unet_channels[0]))
    return bake(base, [(Adapter(deltas, AdapterInfo("d")), 1.0)], tmp_path / f"tuned-{base.name}")


@pytest.mark.parametrize("budget", ["global", "layer"])
def test_extract_takes_the_largest_differences(base: Path, tuned: Path, budget: str) -> None:
    density = 0.03
    adapter, energy = extract(base, tuned, density, name="mine", budget=budget)
    before, after = Checkpoint(base), Checkpoint(tuned)
    change = {name: after.read(name).float() - before.read(name).float() for name in before}
    matrices = {name: one for name, one in change.items() if one.dim() > 1 and one.any()}
    flat = torch.cat([one.abs().flatten() for one in matrices.values()])
    edge = flat.sort(descending=True).values[round(density * flat.numel()) - 1]
    for name, dense in matrices.items():
        if budget == "layer":
            count = max(1, round(density * dense.numel()))
            edge = dense.abs().flatten().sort(descending=True).values[count - 1]
        above = dense.abs() > edge
        found = adapter.deltas[name].to_dense() if name in adapter.deltas else torch.zeros(1)
        assert torch.equal(found[above] if found.dim() > 1 else found[:0], dense.half()[above])
        lost = float(((dense - found) ** 2).double().sum())
        assert energy.lost[name] == pytest.approx(lost, rel=1e-5)
        assert energy.whole[name] == pytest.approx(float((dense**2).double().sum()), rel=1e-5)
        assert energy.shares[name] == pytest.approx(1 - lost / energy.whole[name], abs=1e-6)
    if budget == "global":
        assert adapter.nnz == round(density * flat.numel())
    bias = "unet.conv_in.bias"
    assert energy.lost[bias] == energy.whole[bias] > 0
    assert set(energy.whole) == {*matrices, bias}
    assert 0.1 < energy.kept < 1.0
    assert energy.error == pytest.approx((1 - energy.kept) ** 0.5)
    assert adapter.info.base_fingerprint == {"unet": before.fingerprints()["unet"]}


def test_extracting_all_of_it_bakes_back(base: Path, tuned: Path, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    adapter, energy = extract(
        base,
        tuned,
        1.0,
        name="all",
        dtype=torch.float32,
        budget="layer",
        progress=lambda done, total: told.append((done, total)),
    )
    assert energy.shares["unet.mid_block.attentions.0.proj_in.weight"] == 1.0
    assert told[-1] == (len(told), len(told))
    again = Checkpoint(bake(base, [(adapter, 1.0)], tmp_path / f"again-{base.name}"))
    wanted = Checkpoint(tuned)
    for name in wanted:
        if name != "unet.conv_in.bias":
            assert torch.equal(again.read(name), wanted.read(name)), name


def test_extract_by_groups_and_its_refusals(
    base: Path, tuned: Path, folder: Path, toy_base: Path
) -> None:
    adapter, energy = extract(base, tuned, 0.5, name="a", targets=["attention"])
    assert adapter.deltas
    assert all(".attn" in name for name in adapter.deltas)
    assert energy.lost["unet.mid_block.resnets.0.conv1.weight"] > 0
    nothing, none_kept = extract(base, base, 0.5, name="a")
    assert (nothing.nnz, none_kept.kept, none_kept.error) == (0, 1.0, 0.0)
    for wrong in (0.0, 1.1):
        with pytest.raises(SettingError, match="density"):
            extract(base, tuned, wrong, name="a")
    with pytest.raises(SettingError, match="'attention'"):
        extract(base, tuned, 0.5, name="a", targets=["atention"])
    with pytest.raises(SettingError, match="budget"):
        extract(base, tuned, 0.5, name="a", budget="none")
    with pytest.raises(MismatchError, match="architectures"):
        extract(base, toy_base, 0.5, name="a")


def test_a_lora_is_sparsified(base: Path) -> None:
    checkpoint = Checkpoint(base)
    (_, _), (low, _), (turned, _) = adapters(checkpoint)
    sparse, energy = sparsify(low, 0.1)
    flat = torch.cat([one.to_dense().abs().flatten() for one in low.deltas.values()])
    assert sparse.nnz == round(0.1 * low.nnz)
    kept = torch.cat([one.values.float().abs() for one in sparse.deltas.values()])
    assert torch.equal(kept.sort().values, flat.sort().values[-sparse.nnz :].half().float())
    lost = (flat**2).sum() - (kept**2).sum()
    assert energy.kept == pytest.approx(1 - float(lost / (flat**2).sum()), abs=1e-3)
    assert sparse.info.method == "shira"
    with pytest.raises(Exception, match="depends on the base weight"):
        sparsify(turned, 0.1)
    whole, energy = sparsify(turned, 1.0, base=checkpoint, dtype=torch.float32, budget="layer")
    assert energy.kept == 1.0
    for name, delta in turned.deltas.items():
        assert torch.equal(whole.deltas[name].to_dense(), delta.change(checkpoint.read(name)))


def test_what_is_for_another_base_is_not_sparsified(base: Path, tuned: Path) -> None:
    """Its change would be another one, yet the file would say that it is right."""
    checkpoint, other = Checkpoint(base), Checkpoint(tuned)
    turned = adapters(checkpoint)[2][0].for_base(checkpoint.fingerprints())
    assert sparsify(turned, 0.1, base=checkpoint)[0].nnz
    with pytest.raises(MismatchError, match=r"'turned' was made for.*shira tag"):
        sparsify(turned, 0.1, base=other)
    assert sparsify(turned.for_base(other.fingerprints()), 0.1, base=other)[0].nnz
