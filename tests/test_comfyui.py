"""The ComfyUI node: the weights that our switcher makes, from a few numbers per weight."""

import ast
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import comfy_toys
import pytest
import torch
from comfy_toys import Clip, ModelPatcher
from diffusers import UNet2DConditionModel
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from shira_diffusion import Adapter, AdapterInfo, AdapterSwitcher, SparseDelta
from shira_diffusion.errors import FormatError
from shira_diffusion.formats import native

ROOT = Path(__file__).parent.parent
SHIPPED = sorted(path.name for path in (ROOT / "adapters").iterdir() if path.is_dir())
SPARSE = [name for name in SHIPPED if not name.endswith("-lora")]


def file_of(name: str) -> Path:
    return ROOT / "adapters" / name / "adapter.safetensors"


@pytest.fixture(scope="module")
def comfy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    models = tmp_path_factory.mktemp("models")
    with comfy_toys.installed(models) as package:
        for name in SHIPPED:
            shutil.copyfile(file_of(name), models / "shira" / f"{name}.safetensors")
        yield package


@pytest.fixture(scope="module")
def unet() -> UNet2DConditionModel:
    return UNet2DConditionModel.from_pretrained(
        ROOT / "models" / "emoji-xl", subfolder="unet", dtype=torch.float32
    )


def loader(comfy: ModuleType) -> Any:
    return comfy.NODE_CLASS_MAPPINGS["LoadShira"]()


def model_of(unet: nn.Module, dtype: torch.dtype = torch.float32) -> ModelPatcher:
    model = nn.Module()
    model.diffusion_model = unet.to(dtype)
    return ModelPatcher(model)


def weights_of(unet: nn.Module) -> dict[str, torch.Tensor]:
    return {name: one.clone() for name, one in unet.state_dict().items()}


def test_the_node_is_found_and_lists_its_files(comfy: ModuleType) -> None:
    node = comfy.NODE_CLASS_MAPPINGS["LoadShira"]
    assert comfy.NODE_DISPLAY_NAME_MAPPINGS["LoadShira"] == "Load SHiRA"
    listed = node.INPUT_TYPES()["required"]["shira_name"][0]
    assert listed == sorted(f"{name}.safetensors" for name in SHIPPED)
    assert len(node.RETURN_TYPES) == len(node.RETURN_NAMES) == 3


@pytest.mark.parametrize("mix", [{"robot": 1.0}, {"robot": -0.3}, {"robot": 1.0, "monotone": 0.5}])
def test_weights_are_the_switchers_bit_for_bit(
    comfy: ModuleType, unet: UNet2DConditionModel, mix: dict[str, float]
) -> None:
    patcher = model_of(unet)
    before = weights_of(unet)
    switcher = AdapterSwitcher({"unet": unet})
    loaded = patcher
    for name, strength in mix.items():
        switcher.add(name, Adapter.load(file_of(name)))
        loaded, clip, words = loader(comfy).load(loaded, f"{name}.safetensors", strength, 1.0)
        assert clip is None
        assert words == ", ".join(Adapter.load(file_of(name)).info.trigger_words)
    with switcher.using(mix):
        ours = weights_of(unet)
    loaded.patch_model()
    theirs = weights_of(unet)
    loaded.unpatch_model()
    after = weights_of(unet)
    assert all(torch.equal(theirs[name], one) for name, one in ours.items())
    assert any(not torch.equal(theirs[name], one) for name, one in before.items())
    assert all(torch.equal(after[name], one) for name, one in before.items())
    assert patcher.patches == {}


def test_nothing_of_a_weights_size_is_held(comfy: ModuleType, unet: UNet2DConditionModel) -> None:
    loaded, _, _ = loader(comfy).load(model_of(unet), "robot.safetensors", 1.0, 1.0)
    adapter = Adapter.load(file_of("robot"))
    patches = [patch for one in loaded.patches.values() for _, patch, *_ in one]
    assert len(patches) == len(adapter.deltas)
    assert sum(part.nbytes for one in patches for part in one.weights) == 6 * adapter.nnz


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_streamed_weights_are_the_loaded_ones(
    comfy: ModuleType, unet: UNet2DConditionModel, dtype: torch.dtype
) -> None:
    patcher = model_of(unet, dtype)
    try:
        loaded, _, _ = loader(comfy).load(patcher, "robot.safetensors", 0.7, 1.0)
        streamed = {key: loaded.streamed(key) for key in loaded.patches}
        loaded.patch_model()
        for key, weight in streamed.items():
            assert weight.dtype == dtype
            assert torch.equal(weight, loaded.model.get_parameter(key))
        loaded.unpatch_model()
    finally:
        unet.float()


def test_a_weight_in_another_memory_order(comfy: ModuleType) -> None:
    patch = comfy.nodes.SparsePatch(
        set(), (torch.tensor([1, 10], dtype=torch.int32), torch.ones(2))
    )
    weight = torch.zeros(2, 3, 2, 2).to(memory_format=torch.channels_last)
    changed = patch.calculate_weight(weight, "", 2.0, 1.0, None, None)
    expected = torch.zeros(24)
    expected[[1, 10]] = 2.0
    assert torch.equal(changed, expected.reshape(2, 3, 2, 2))


def text_encoders() -> Clip:
    model = nn.Module()
    for name in ("clip_l", "clip_g"):
        layer = nn.Module()
        layer.self_attn = nn.Module()
        layer.self_attn.q_proj = nn.Linear(4, 4)
        encoder = nn.Module()
        encoder.layers = nn.ModuleList([layer])
        text_model, transformer, clip = nn.Module(), nn.Module(), nn.Module()
        text_model.encoder, transformer.text_model = encoder, text_model
        clip.transformer = transformer
        setattr(model, name, clip)
    return Clip(model)


def saved(comfy: ModuleType, name: str, deltas: dict[str, SparseDelta], **info: Any) -> str:
    folder = Path(comfy.nodes.folder_paths.models_dir) / "shira"
    Adapter(deltas, AdapterInfo(name, **info)).save(folder / f"{name}.safetensors")
    return f"{name}.safetensors"


def change(shape: tuple[int, ...], value: float) -> SparseDelta:
    return SparseDelta(torch.tensor([2], dtype=torch.int32), torch.tensor([value]), shape)


def test_text_encoders_are_patched_apart(
    comfy: ModuleType, unet: UNet2DConditionModel, caplog: pytest.LogCaptureFixture
) -> None:
    weight = "text_model.encoder.layers.0.self_attn.q_proj.weight"
    deltas = {f"text_encoder.{weight}": change((4, 4), 1.0)}
    deltas |= {f"text_encoder_2.{weight}": change((4, 4), 2.0)}
    name = saved(comfy, "texts", deltas)
    model, clip = model_of(unet), text_encoders()
    before = {key: one.clone() for key, one in clip.cond_stage_model.state_dict().items()}
    same, patched, _ = loader(comfy).load(model, name, 1.0, 0.5, clip)
    patched.patcher.patch_model()
    now = clip.cond_stage_model.state_dict()
    moved = {key: (now[key] - before[key]).flatten() for key in now}
    assert same is model
    assert moved[f"clip_l.transformer.{weight}"][2] == pytest.approx(0.5)
    assert moved[f"clip_g.transformer.{weight}"][2] == pytest.approx(1.0)
    assert sum(int(one.count_nonzero()) for one in moved.values()) == 2
    patched.patcher.unpatch_model()
    _, nothing, _ = loader(comfy).load(model, name, 1.0, 1.0)
    assert nothing is None
    assert "connect clip" in caplog.text


def test_strength_0_changes_nothing(comfy: ModuleType, unet: UNet2DConditionModel) -> None:
    model = model_of(unet)
    same, _, words = loader(comfy).load(model, "robot.safetensors", 0.0, 0.0)
    assert same is model
    assert words == "robot"


@pytest.mark.parametrize(
    ("name", "shape", "state"),
    [("unet.conv_in.weight", (3, 3), "has it as"), ("unet.nothing.weight", (3, 3), "lacks it")],
)
def test_another_model_is_refused_by_name(
    comfy: ModuleType, unet: UNet2DConditionModel, name: str, shape: tuple[int, ...], state: str
) -> None:
    file = saved(comfy, "other", {name: change(shape, 1.0)}, base_model="toy-xl")
    with pytest.raises(ValueError, match=f"{name}.*{state}.*toy-xl"):
        loader(comfy).load(model_of(unet), file, 1.0, 1.0)


def test_a_lora_is_sent_to_its_own_node(comfy: ModuleType, unet: UNet2DConditionModel) -> None:
    with pytest.raises(ValueError, match="Load LoRA"):
        loader(comfy).load(model_of(unet), "robot-lora.safetensors", 1.0, 1.0)


def test_an_overwritten_file_is_read_again(comfy: ModuleType, unet: UNet2DConditionModel) -> None:
    node = loader(comfy)
    file = saved(
        comfy, "fresh", {"unet.conv_in.weight": change(tuple(unet.conv_in.weight.shape), 1.0)}
    )
    first = node.IS_CHANGED(file)
    node.load(model_of(unet), file, 1.0, 1.0)
    saved(comfy, "fresh", {}, trigger_words=("new",))
    assert node.IS_CHANGED(file) != first
    assert node.load(model_of(unet), file, 1.0, 1.0)[2] == "new"


@pytest.mark.parametrize("name", SPARSE)
def test_its_reader_agrees_with_the_librarys(comfy: ModuleType, name: str) -> None:
    assert_same(comfy, file_of(name))


def test_it_reads_what_is_written_now(comfy: ModuleType, tmp_path: Path) -> None:
    deltas = {"unet.0": change((2, 3), 4.0), "unet.empty.weight": change((5,), 1.0)}
    for kind in (torch.float16, torch.bfloat16, torch.float32):
        places = torch.tensor([0, 300], dtype=torch.int32)
        deltas[f"unet.{kind}.weight"] = SparseDelta(
            places, torch.tensor([1.5, -2.0]).to(kind), (20, 20)
        )
    Adapter(deltas, AdapterInfo("all", trigger_words=("a", "b"))).save(tmp_path / "all.safetensors")
    assert_same(comfy, tmp_path / "all.safetensors")
    for name in SPARSE:
        Adapter.load(file_of(name)).save(tmp_path / f"{name}.safetensors")
        assert_same(comfy, tmp_path / f"{name}.safetensors")


def assert_same(comfy: ModuleType, file: Path) -> None:
    ours, theirs = native.load(file), comfy.nodes.read(file)
    assert (theirs.name, theirs.trigger_words) == (ours.info.name, ours.info.trigger_words)
    assert list(theirs.changes) == list(ours.deltas)
    for weight, delta in ours.entries.items():
        change = theirs.changes[weight]
        assert change.shape == delta.shape
        assert torch.equal(change.indices, delta.indices)
        assert torch.equal(change.values, delta.values)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_damaged_files_are_refused_by_both(
    comfy: ModuleType, tmp_path: Path, data: st.DataObject
) -> None:
    whole = small_file(tmp_path)
    broken = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 3))):
        broken[data.draw(st.integers(0, len(broken) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(broken)) | st.none())
    path = tmp_path / "broken.safetensors"
    path.write_bytes(broken[:cut])
    try:
        expected = native.load(path)
    except FormatError:
        with pytest.raises(comfy.native_file.BrokenFileError, match="broken"):
            comfy.nodes.read(path)
    else:
        assert comfy.nodes.read(path).changes.keys() == expected.deltas.keys()


def small_file(folder: Path) -> bytes:
    path = folder / "small.safetensors"
    if not path.exists():
        Adapter({"unet.a.weight": change((2, 3), 1.0)}, AdapterInfo("small")).save(path)
    return path.read_bytes()


def test_it_needs_nothing_that_comfyui_lacks() -> None:
    # No pip install: it could replace ComfyUI's own torch.
    allowed = {"comfy", "folder_paths", "numpy", "safetensors", "torch", *sys.stdlib_module_names}
    for file in comfy_toys.NODE.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                assert str(node.module).partition(".")[0] in allowed
            elif isinstance(node, ast.Import):
                assert {one.name.partition(".")[0] for one in node.names} <= allowed
