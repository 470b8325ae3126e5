"""The native file: lossless, checked to the last byte, and never the cause of another error."""

import hashlib
import json
import math
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from shira_diffusion.adapter import Adapter, AdapterInfo
from shira_diffusion.delta import SparseDelta, index_dtype
from shira_diffusion.errors import FormatError, ShiraError
from shira_diffusion.formats import container, gaps, native
from shira_diffusion.formats import load as load_any

FULL_INFO = AdapterInfo(
    "robot",
    title="A robot, ☃",
    base_model="emoji-xl",
    base_fingerprint={"unet": "12ab"},
    mask="rand",
    trigger_words=("sks robot", "tin, man"),
    training={"steps": "200", "rate": "1e-3"},
    tags=("robot", "concept"),
    license="Apache-2.0",
    author="us",
    description="line one\nline two",
    date="2026-11-23",
)


def change(
    seed: int, shape: tuple[int, ...], density: float, dtype: torch.dtype = torch.float16
) -> SparseDelta:
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.rand(math.prod(shape), generator=generator) < density
    indices = chosen.nonzero().squeeze(1).to(torch.int32)
    return SparseDelta(indices, torch.randn(indices.numel(), generator=generator).to(dtype), shape)


def small() -> Adapter:
    deltas = {
        "unet.a.weight": change(1, (20, 30), 0.01),
        "unet.b.weight": change(2, (4, 3, 3, 3), 1.0, torch.float32),
        "text_encoder.text_model.c.weight": change(3, (50,), 0.2, torch.bfloat16),
        "unet.empty.weight": change(4, (7, 7), 0.0),
    }
    return Adapter(deltas, FULL_INFO)


def assert_equal(one: Adapter, other: Adapter) -> None:
    assert one.info == other.info
    assert list(one.deltas) == list(other.deltas)
    for name, delta in one.deltas.items():
        again = other.deltas[name]
        assert delta.shape == again.shape
        assert delta.indices.dtype == again.indices.dtype
        assert delta.values.dtype == again.values.dtype
        assert torch.equal(delta.indices, again.indices)
        assert torch.equal(delta.values, again.values)


def slow_gaps(indices: list[int]) -> list[int]:
    """The gap code by its definition, one entry at a time."""
    code, position = [], 0
    for index in indices:
        while index - position >= 255:
            code.append(255)
            position += 255
        code.append(index - position)
        position = index + 1
    return code


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_gap_code_equals_its_definition(data: st.DataObject) -> None:
    numel = data.draw(st.sampled_from([1, 2, 255, 256, 257, 511, 3000, 2**31 + 10]))
    edges = st.sampled_from([0, 254, 255, 256, 509, 510, 511, numel - 1])
    places = st.one_of(st.integers(0, numel - 1), edges).filter(lambda place: place < numel)
    if numel > 10**6:
        # The code of a far entry is long by nature, so keep what is drawn near the start.
        places = st.integers(0, 5000)
    indices = sorted(data.draw(st.sets(places, max_size=40)))
    code = gaps.encode(torch.tensor(indices, dtype=index_dtype(numel)))
    assert code.dtype == torch.uint8
    assert code.tolist() == slow_gaps(indices)
    again = gaps.decode(code, len(indices), numel)
    assert again.dtype == index_dtype(numel)
    assert again.tolist() == indices


@pytest.mark.parametrize(
    ("code", "nnz", "fault"),
    [
        ([0, 0], 3, "marks 2 entries"),
        ([0, 255], 1, "ends in a skip"),
        ([255], 0, "ends in a skip"),
        ([9, 0], 2, "reaches entry 10"),
        ([255, 0], 1, "reaches entry 255"),
    ],
)
def test_gap_codes_of_no_indices_are_refused(code: list[int], nnz: int, fault: str) -> None:
    with pytest.raises(FormatError, match=fault):
        gaps.decode(torch.tensor(code, dtype=torch.uint8), nnz, numel=10)


def test_save_and_load(tmp_path: Path) -> None:
    path = tmp_path / "new" / "robot.safetensors"
    adapter = small()
    adapter.save(path)
    assert_equal(Adapter.load(path), adapter)
    assert_equal(load_any(str(path)), adapter)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@given(
    shape=st.lists(st.integers(0, 6), max_size=4).map(tuple),
    density=st.sampled_from([0.0, 0.1, 1.0]),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32]),
    name=st.text(st.characters(codec="utf-8"), min_size=1, max_size=8),
    word=st.text(st.characters(codec="utf-8"), max_size=8),
)
@settings(max_examples=60, deadline=None)
def test_any_adapter_comes_back_equal(
    tmp_path_factory: pytest.TempPathFactory,
    shape: tuple[int, ...],
    density: float,
    dtype: torch.dtype,
    name: str,
    word: str,
) -> None:
    info = AdapterInfo(name, title=word, trigger_words=(word,), training={word: name})
    adapter = Adapter({f"unet.{name}": change(0, shape, density, dtype)}, info)
    path = tmp_path_factory.mktemp("any") / "a.safetensors"
    adapter.save(path)
    assert_equal(Adapter.load(path), adapter)


def test_equal_adapters_give_equal_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        small().save(tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_about_three_bytes_an_entry(tmp_path: Path) -> None:
    adapter = Adapter({"unet.a.weight": change(0, (1280, 1280), 0.01)}, AdapterInfo("big"))
    adapter.save(tmp_path / "big")
    assert (tmp_path / "big").stat().st_size < 3.15 * adapter.nnz + 1500


def test_modelspec_metadata(tmp_path: Path) -> None:
    small().save(tmp_path / "a.safetensors")
    with safe_open(tmp_path / "a.safetensors", framework="pt") as file:
        stated = file.metadata()
    data = (tmp_path / "a.safetensors").read_bytes()
    tensors = data[8 + int.from_bytes(data[:8], "little") :]
    expected = {
        "sai_model_spec": "1.0.1",
        "architecture": "stable-diffusion-xl-v1-base/shira",
        "implementation": "diffusers",
        "title": "A robot, ☃",
        "description": "line one\nline two",
        "author": "us",
        "date": "2026-11-23",
        "license": "Apache-2.0",
        "usage_hint": "Trigger words: sks robot, tin, man",
        "trigger_phrase": "sks robot, tin, man",
        "tags": "robot, concept",
        "hash_sha256": "0x" + hashlib.sha256(tensors).hexdigest(),
    }
    spec = {key[10:]: value for key, value in stated.items() if key.startswith("modelspec.")}
    assert spec == expected


def test_what_is_not_known_is_not_written(tmp_path: Path) -> None:
    Adapter({}, AdapterInfo("bare")).save(tmp_path / "a")
    with safe_open(tmp_path / "a", framework="pt") as file:
        stated = file.metadata()
    assert stated["modelspec.title"] == "bare"
    assert not {"modelspec.date", "modelspec.license", "modelspec.author"} & set(stated)


def test_a_failing_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.safetensors"
    small().save(path)
    before = path.read_bytes()

    def full_disk(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(ShiraError, match="No space left"):
        Adapter({}, AdapterInfo("other")).save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("good") / "a.safetensors"
    small().save(path)
    return path.read_bytes()


def loads_as_before_or_is_refused(path: Path) -> None:
    for load in (native.load, load_any):
        try:
            again = load(path)
        except FormatError:
            continue
        # Only the spaces between the header's words may change unnoticed.
        assert_equal(again, small())


@pytest.mark.parametrize(
    "names",
    [["a", "a.b", "a.b.c", "a..b", "a-b", "b.a", "b.a.c.d"], [".", ".a", "a."], ["", ".", "..a"]],
)
def test_names_that_begin_with_another_weights_name(tmp_path: Path, names: list[str]) -> None:
    deltas = {name: change(seed, (5, 5), 0.5) for seed, name in enumerate(names)}
    adapter = Adapter(deltas, FULL_INFO)
    adapter.save(tmp_path / "a")
    assert_equal(native.load(tmp_path / "a"), adapter)


@given(st.data())
@settings(max_examples=400, deadline=None)
def test_no_damaged_byte_goes_unnoticed(
    tmp_path_factory: pytest.TempPathFactory, good: bytes, data: st.DataObject
) -> None:
    header_end = 8 + int.from_bytes(good[:8], "little")
    places = st.one_of(st.integers(0, header_end), st.integers(0, len(good) - 1))
    damaged = bytearray(good)
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(places)] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "damaged.safetensors"
    path.write_bytes(damaged)
    loads_as_before_or_is_refused(path)


def test_every_flipped_bit_of_the_data_is_noticed(tmp_path: Path, good: bytes) -> None:
    header_end = 8 + int.from_bytes(good[:8], "little")
    path = tmp_path / "flipped"
    for place in range(header_end, len(good), 7):
        damaged = bytearray(good)
        damaged[place] ^= 1 << (place % 8)
        path.write_bytes(damaged)
        with pytest.raises(FormatError, match="checksum"):
            native.load(path)


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_cut_or_grown_files_are_refused(
    tmp_path_factory: pytest.TempPathFactory, good: bytes, data: st.DataObject
) -> None:
    size = data.draw(st.integers(0, len(good) - 1))
    damaged = data.draw(st.sampled_from([good[:size], good[size + 1 :], good + b"\0", good * 2]))
    path = tmp_path_factory.getbasetemp() / "cut.safetensors"
    path.write_bytes(damaged)
    for load in (native.load, load_any):
        with pytest.raises(FormatError, match=r"cut\.safetensors"):
            load(path)


@given(st.binary(max_size=200))
@settings(max_examples=200, deadline=None)
def test_any_bytes_are_refused(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "noise.safetensors"
    path.write_bytes(data)
    for load in (native.load, load_any):
        with pytest.raises(FormatError, match=r"noise\.safetensors"):
            load(path)


def forged(
    path: Path,
    tensors: dict[str, torch.Tensor] | None = None,
    version: str | None = "2",
    **metadata: str | None,
) -> Path:
    """A file whose checksum is right but whose content is not; None takes a key out."""
    start = "w" if version == "1" else "fp16"
    stated = {
        "shira.version": version,
        "shira.info": '{"name": "forged"}',
        "shira.shapes": '{"w": [4, 5]}',
        "shira.layout": '{"fp16": {"w": [[4, 5], 2]}}',
        **{f"shira.{key}": value for key, value in metadata.items()},
    }
    good = {
        f"{start}.gaps": torch.tensor([0, 3], dtype=torch.uint8),
        f"{start}.values": torch.ones(2, dtype=torch.float16),
    }
    if start == "fp16":
        good["fp16.skips"] = torch.empty(0, dtype=torch.uint8)
    kept = {key: value for key, value in stated.items() if value is not None}
    container.write(path, good if tensors is None else tensors, kept)
    return path


@pytest.mark.parametrize("version", ["1", "2"])
def test_the_forger_can_write_a_good_file(tmp_path: Path, version: str) -> None:
    adapter = native.load(forged(tmp_path / "good", version=version))
    assert adapter.deltas["w"].indices.tolist() == [0, 4]


def in_layout(leaf: str) -> dict[str, str]:
    return {"layout": f'{{"fp16": {{"w": {leaf}}}}}'}


@pytest.mark.parametrize(
    ("metadata", "fault"),
    [
        ({"version": "3"}, "version 3, this program reads up to 2; update"),
        ({"version": "999999"}, "update"),
        ({"version": "0"}, "no format version"),
        ({"version": "9" * 5000}, "no format version"),
        ({"version": "x"}, "no format version"),
        ({"version": None}, "not a native adapter"),
        ({"info": None}, "lack"),
        ({"info": "["}, "JSON"),
        ({"info": "[" * 100_000}, "JSON"),
        ({"info": "[]"}, "not a JSON object"),
        ({"info": "{}"}, "damaged"),
        ({"info": '{"name": 3}'}, "name must be text"),
        ({"info": '{"name": "x", "tags": {"a": 1}}'}, "tags"),
        ({"info": '{"name": "\\ud800"}'}, "Unicode"),
        ({"layout": None}, "JSON"),
        ({"layout": "3"}, "not a JSON object"),
        ({"layout": '{"fp16": {"w": ' * 900 + "1" + "}" * 1800}, "JSON|no shape"),
        ({"layout": '{"fp16": {"a": {"b": [[1],0]}, "a.b": [[1],0]}}'}, "twice"),
        ({"layout": '{"fp16": 3}'}, "no shape"),
        (in_layout("[[4, 5]]"), "no shape"),
        (in_layout("[[4, 5], 2, 2]"), "no shape"),
        (in_layout("[[1000000000, 1000000000, 1000000000], 2]"), "impossible shape"),
        (in_layout("[[-4, -5], 2]"), "impossible shape"),
        (in_layout("[[4, true], 2]"), "impossible shape"),
        (in_layout('["45", 2]'), "impossible shape"),
        (in_layout("[[4, 5], -2]"), "impossible number"),
        (in_layout("[[4, 5], 2.0]"), "impossible number"),
        (in_layout("[[4, 5], 3]"), "speaks of 3 entries, but there are 2 gaps and 2 values"),
        (in_layout("[[4, 5], 200000000000]"), "speaks of"),
        (in_layout("[[2, 2], 2]"), "'w': its gaps reach entry 4, but it has 4"),
        (in_layout("[[0], 2]"), "reach entry"),
        ({"layout": '{"fp16": {"v": [[9], 1], "w": [[3], 1]}}'}, "'w': its gaps reach entry 3"),
        ({"layout": '{"fp16": {}, "bf16": {}}'}, "'bf16.gaps' is missing"),
        ({"layout": '{"int8": {}}'}, "'fp16.gaps' belongs to no weight"),
    ],
)
def test_lies_in_the_metadata_are_refused(
    tmp_path: Path, metadata: dict[str, str | None], fault: str
) -> None:
    path = forged(tmp_path / "a", **metadata)
    with pytest.raises(FormatError, match=fault) as caught:
        native.load(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("metadata", "fault"),
    [
        ({"shapes": None}, "JSON"),
        ({"shapes": "3"}, "not a JSON object"),
        ({"shapes": '{"w": [1000000000, 1000000000, 1000000000]}'}, "impossible shape"),
        ({"shapes": '{"w": [-4, -5]}'}, "impossible shape"),
        ({"shapes": '{"w": [4.0, 5]}'}, "impossible shape"),
        ({"shapes": '{"w": [true, 5]}'}, "impossible shape"),
        ({"shapes": '{"w": "45"}'}, "impossible shape"),
        ({"shapes": '{"w": [1, 1, 1, 1, 1, 1, 1, 1, 20]}'}, "impossible shape"),
        ({"shapes": '{"w": [2, 2]}'}, "reaches entry 4 of a weight with 4"),
        ({"shapes": '{"w": [0]}'}, "reaches entry"),
        ({"shapes": '{"w": [4, 5], "v": [1]}'}, "'v.gaps' is missing"),
        ({"shapes": "{}"}, "'w.gaps' belongs to no weight"),
    ],
)
def test_lies_in_the_metadata_of_version_1_are_refused(
    tmp_path: Path, metadata: dict[str, str | None], fault: str
) -> None:
    path = forged(tmp_path / "a", version="1", **metadata)
    with pytest.raises(FormatError, match=fault) as caught:
        native.load(path)
    assert str(path) in str(caught.value)


CODE, VALUES = torch.tensor([0, 3], dtype=torch.uint8), torch.ones(2, dtype=torch.float16)


@pytest.mark.parametrize(
    ("code", "values", "fault"),
    [
        (CODE.char(), VALUES, "not of their type"),
        (CODE.reshape(1, 2), VALUES, "not flat"),
        (CODE, VALUES.reshape(2, 1), "not flat"),
        (CODE, VALUES.double(), "not of their type|fp16, bf16 or fp32"),
        (CODE, VALUES.int(), "not of their type|fp16, bf16 or fp32"),
        (CODE, VALUES[:1].clone(), "speaks of|marks 2 entries"),
        (CODE[:1].clone(), VALUES, "speaks of|marks 1 entries"),
        (CODE, VALUES * math.nan, "'w': values hold NaN"),
        (CODE, VALUES * math.inf, "infinity"),
        (torch.tensor([0, 19], dtype=torch.uint8), VALUES, "reach(es)? entry 20"),
        (torch.tensor([0, 1, 255], dtype=torch.uint8), VALUES, "skip|speaks of"),
    ],
)
def test_wrong_tensors_are_refused(
    tmp_path: Path, code: torch.Tensor, values: torch.Tensor, fault: str
) -> None:
    for version, start in (("1", "w"), ("2", "fp16")):
        tensors = {f"{start}.gaps": code, f"{start}.values": values}
        if version == "2":
            tensors["fp16.skips"] = torch.empty(0, dtype=torch.uint8)
        path = forged(tmp_path / "a", tensors, version=version)
        with pytest.raises(FormatError, match=fault):
            native.load(path)


@pytest.mark.parametrize(
    ("skips", "fault"),
    [
        (torch.tensor([2]), "'fp16' are not of their type"),
        (torch.tensor([[0]], dtype=torch.uint8), "not flat"),
        (torch.tensor([1], dtype=torch.uint8), "reach entry 260"),
        (torch.tensor([2], dtype=torch.uint8), "belongs to entry 2, but there are 2"),
        (torch.tensor([255], dtype=torch.uint8), "end in a step to none"),
    ],
)
def test_wrong_skips_are_refused(tmp_path: Path, skips: torch.Tensor, fault: str) -> None:
    tensors = {"fp16.gaps": CODE, "fp16.skips": skips, "fp16.values": VALUES}
    with pytest.raises(FormatError, match=fault):
        native.load(forged(tmp_path / "a", tensors))


def test_a_claimed_size_allocates_nothing(tmp_path: Path) -> None:
    # 2^48 entries: any dense tensor of that shape would need a petabyte.
    path = forged(tmp_path / "a", **in_layout("[[16777216, 16777216], 2]"))
    delta = native.load(path).deltas["w"]
    assert delta.indices.dtype == torch.int64
    assert delta.nnz == 2


def test_what_was_read_does_not_follow_the_file(tmp_path: Path) -> None:
    small().save(tmp_path / "a")
    adapter = native.load(tmp_path / "a")
    with (tmp_path / "a").open("r+b") as file:
        file.write(b"\xff" * (tmp_path / "a").stat().st_size)
    assert_equal(adapter, small())


def test_a_lying_header_size_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a"
    header = {"w.gaps": {"dtype": "U8", "shape": [2**50], "data_offsets": [0, 2**50]}}
    text = json.dumps(header).encode()
    path.write_bytes(np.uint64(len(text)).tobytes() + text)
    with pytest.raises(FormatError, match="whole safetensors"):
        native.load(path)


def test_files_of_other_kinds_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="no such file"):
        Adapter.load(tmp_path / "missing.safetensors")
    with pytest.raises(FormatError, match="cannot be read"):
        native.load(tmp_path)
    with pytest.raises(FormatError):
        load_any(tmp_path)
    for ending in (".ckpt", ".pt", ".bin"):
        torch.save({"w": torch.ones(2)}, tmp_path / f"a{ending}")
        with pytest.raises(FormatError, match="any program"):
            Adapter.load(tmp_path / f"a{ending}")
    torch.save({"w": torch.ones(2)}, tmp_path / "renamed.safetensors")
    with pytest.raises(FormatError, match="whole safetensors"):
        Adapter.load(tmp_path / "renamed.safetensors")
    checkpoint = tmp_path / "model.safetensors"
    safetensors.torch.save_file({"unet.conv_in.weight": torch.ones(2)}, checkpoint)
    with pytest.raises(FormatError, match=r"neither .* unet\.conv_in\.weight"):
        Adapter.load(checkpoint)
    safetensors.torch.save_file({"w": torch.ones(2).to(torch.float8_e8m0fnu)}, checkpoint)
    with pytest.raises(FormatError):
        native.load(checkpoint)
