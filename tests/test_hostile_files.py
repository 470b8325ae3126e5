"""Every reader against damaged and forged files: an adapter, or `FormatError`, and nothing else."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from shira_diffusion import formats
from shira_diffusion.adapter import Adapter, AdapterInfo
from shira_diffusion.delta import SparseDelta
from shira_diffusion.errors import FormatError, MismatchError
from shira_diffusion.formats import diff, lora, native
from shira_diffusion.formats import peft as peft_format
from shira_diffusion.formats.checkpoint import Checkpoint
from shira_diffusion.formats.kohya import Naming

LAYER = "unet.mid_block.attentions.0.proj_in"


def adapter() -> Adapter:
    generator = torch.Generator().manual_seed(0)
    deltas = {}
    for name in (f"{LAYER}.weight", "unet.mid_block.attentions.0.proj_out.weight"):
        chosen = torch.rand(8, 12, generator=generator) < 0.2
        dense = torch.randn(8, 12, generator=generator) * chosen
        deltas[name] = SparseDelta.from_dense(dense.half())
    info = AdapterInfo("a", trigger_words=("x",), base_fingerprint={"unet": "ab"})
    return Adapter(deltas, info)


def dora(path: Path) -> None:
    state = {
        f"{LAYER}.lora_A.weight": torch.ones(2, 12),
        f"{LAYER}.lora_B.weight": torch.ones(8, 2),
        f"{LAYER}.lora_magnitude_vector": torch.ones(8),
    }
    stated = {"unet.lora_alpha": 2, "unet.use_dora": True, "unet.alpha_pattern": {"proj_in": 1}}
    save_file(state, path, metadata={"lora_adapter_metadata": json.dumps(stated)})


def whole(path: Path) -> None:
    """A checkpoint, small and not all of it."""
    start = "conditioner.embedders.1.model."
    save_file(
        {
            "model.diffusion_model.middle_block.1.proj_in.weight": torch.ones(4, 4),
            "model.diffusion_model.input_blocks.1.0.in_layers.2.weight": torch.ones(2, 2, 3, 3),
            f"{start}transformer.resblocks.0.attn.in_proj_weight": torch.ones(6, 2),
            f"{start}text_projection": torch.ones(2, 2),
            "first_stage_model.x": torch.ones(1),
        },
        path,
    )


def peft_file(path: Path) -> None:
    folder = path.parent / "peft"
    peft_format.save(adapter(), folder)
    shutil.move(folder / peft_format.WEIGHTS, path)


def read_checkpoint(path: Path) -> Checkpoint:
    """All of it, which a header alone does not test."""
    checkpoint = Checkpoint(path)
    for name in checkpoint:
        assert tuple(checkpoint.read(name).shape) == checkpoint.shape(name)
    assert checkpoint.fingerprints()
    return checkpoint


FILES: dict[str, tuple[Callable[[Path], object], Callable[[Path], object]]] = {
    "native": (adapter().save, native.load),
    "peft": (peft_file, peft_format.load),
    "lora": (lambda path: lora.save(adapter(), path, 2, naming=Naming.SGM), lora.load),
    "dora": (dora, lora.load),
    "diff": (lambda path: diff.save(adapter(), path), diff.load),
    "checkpoint": (whole, read_checkpoint),
}


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    files = {}
    for kind, (write, read) in FILES.items():
        path = tmp_path_factory.mktemp(kind) / "a.safetensors"
        write(path)
        read(path)
        files[kind] = path.read_bytes()
    return files


def read_or_refused(path: Path, read: Callable[[Path], object]) -> bool:
    """Whether it was read; anything but a `FormatError` that names the file fails."""
    try:
        read(path)
    except FormatError as error:
        names_it, said = str(path) in str(error), str(error)
    else:
        return True
    assert names_it, said
    return False


def damaged(data: bytes, rng: random.Random) -> bytes:
    """Some bytes changed, cut out, put in, or swapped; most of them where the header is."""
    result = bytearray(data)
    end = min(len(data), 8 + int.from_bytes(data[:8], "little"))
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(end if rng.random() < 0.7 else len(data))
        match rng.randrange(5):
            case 0:
                result[place : place + 1] = bytes([rng.randrange(256)])
            case 1:
                del result[place : place + rng.randint(1, 8)]
            case 2:
                result[place:place] = bytes(rng.randrange(256) for _ in range(rng.randint(1, 8)))
            case 3:
                # Digits in the header: sizes, shapes and offsets that lie.
                digits = [n for n, byte in enumerate(result[:end]) if 48 <= byte <= 57]
                for digit in rng.sample(digits, min(1, len(digits))):
                    result[digit] = rng.randrange(48, 58)
            case 4:
                result[min(place, len(result) - 1)] ^= 1 << rng.randrange(8)
    return bytes(result)


@pytest.mark.parametrize("kind", FILES)
def test_damaged_files(tmp_path: Path, good: dict[str, bytes], kind: str) -> None:
    mutate_and_read(tmp_path, good[kind], FILES[kind][1], seeds=range(150))


@pytest.mark.slow
@pytest.mark.parametrize("kind", FILES)
def test_damaged_files_ten_thousand(tmp_path: Path, good: dict[str, bytes], kind: str) -> None:
    mutate_and_read(tmp_path, good[kind], FILES[kind][1], seeds=range(1000, 11_000))


@pytest.mark.slow
@pytest.mark.parametrize(
    "file", sorted(Path(__file__).parents[1].glob("adapters/*/adapter.safetensors"))[:6]
)
def test_damaged_shipped_files(tmp_path: Path, file: Path) -> None:
    mutate_and_read(tmp_path, file.read_bytes(), formats.load, seeds=range(1700))


def mutate_and_read(
    folder: Path, data: bytes, read: Callable[[Path], object], seeds: range
) -> None:
    path = folder / "damaged.safetensors"
    for seed in seeds:
        path.write_bytes(damaged(data, random.Random(seed)))
        readers = [read] if read is read_checkpoint else [read, formats.load, formats.read_info]
        for reader in readers:
            try:
                read_or_refused(path, reader)
            except Exception as error:
                raise AssertionError(f"seed {seed}: {error!r}") from error


SHAPES = st.lists(st.sampled_from([0, 1, 2, 3, 8, 12]), max_size=4).map(tuple)
TENSORS = st.builds(
    lambda shape, dtype, value: torch.full(shape, value).to(dtype),
    SHAPES,
    st.sampled_from(
        [
            torch.float16,
            torch.bfloat16,
            torch.float32,
            torch.float64,
            torch.int32,
            torch.int64,
            torch.uint8,
            torch.bool,
            torch.float8_e4m3fn,
        ]
    ),
    st.sampled_from([0.0, 1.0, 2.0, 255.0, -1.0, float("inf"), float("nan"), 1e30]),
)
STARTS = [
    LAYER, "lora_unet_middle_block_1_proj_in", "base_model.model.mid_block.a", "x", "", "unet",
    "lora_te2_text_model_encoder_layers_0_mlp_fc1", "model.diffusion_model.middle_block.1.proj_in",
    "conditioner.embedders.1.model.transformer.resblocks.0.attn", "fp16", "fp32",
    "lora_unet_input_blocks_99_7_x", "unet.input_blocks.1.0",
]  # fmt: skip
ENDS = [
    ".lora_A.weight", ".lora_B.weight", ".lora_down.weight", ".lora_up.weight", ".alpha",
    ".dora_scale", ".lora_magnitude_vector", ".shira_weight", ".shira_indices", ".diff", ".diff_b",
    ".gaps", ".skips", ".values", ".weight", ".in_proj_weight", ".in_proj_bias", "", ".x",
]  # fmt: skip
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2**70) | st.floats() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["fp16", "unet", "weight", "r", "name", "unet.lora_alpha", "tags", "w"]
            ),
            inner,
            max_size=3,
        )
    ),
    max_leaves=6,
)
METADATA = st.dictionaries(
    st.sampled_from(
        [
            "shira.version",
            "shira.info",
            "shira.layout",
            "shira.shapes",
            "lora_adapter_metadata",
            "ss_output_name",
            "modelspec.title",
            "modelspec.trigger_phrase",
        ]
    ),
    st.sampled_from(["1", "2", "3", "", "{", '{"name": "a"}']) | JSON.map(json.dumps),
    max_size=4,
)


@given(
    st.dictionaries(
        st.builds(str.__add__, st.sampled_from(STARTS), st.sampled_from(ENDS)), TENSORS, max_size=5
    ),
    METADATA,
    st.none() | JSON,
)
@settings(max_examples=120, deadline=None)
def test_forged_files(
    tmp_path_factory: pytest.TempPathFactory,
    state: dict[str, Tensor],
    metadata: dict[str, str],
    config: object,
) -> None:
    folder = tmp_path_factory.mktemp("forged")
    path = folder / peft_format.WEIGHTS
    save_file(state, path, metadata=metadata)
    if config is not None:
        (folder / peft_format.CONFIG).write_text(json.dumps(config))
    for read in (
        formats.load,
        formats.read_info,
        native.load,
        peft_format.load,
        lora.load,
        diff.load,
    ):
        for source in (path, folder) if read is formats.load else (path,):
            if read_or_refused(source, read) and read is formats.load:
                found = formats.load(source)
                assert all(delta.numel >= delta.nnz for delta in found.deltas.values())
    read_or_refused(path, read_checkpoint)
    shutil.rmtree(folder)


def test_a_wrong_base_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    whole(tmp_path / "a.safetensors")
    checkpoint = Checkpoint(tmp_path / "a.safetensors")
    for name in adapter().deltas:
        if name not in checkpoint.places:
            with pytest.raises(MismatchError, match="another architecture"):
                checkpoint.read(name)
