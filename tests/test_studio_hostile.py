"""Adapter files that mean harm: each is listed with its fault, none is used, the base stays."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from studio_toys import HOSTILE, load_base, make_adapter, recipe

from shira_diffusion import AdapterInfo
from shira_diffusion.formats import container
from studio.engine import Engine
from studio.errors import BrokenAdapterError
from studio.library import AdapterLibrary
from studio.tabs.cards import adapter_cards

Parts = tuple[dict[str, torch.Tensor], dict[str, str]]


@pytest.fixture(scope="module")
def good(toy_base: Path) -> Parts:
    """The tensors and the metadata of a good file, in the format's first version."""
    weights = load_base(toy_base).unet.named_parameters()
    name, weight = next(item for item in weights if item[0].endswith("to_v.weight"))
    tensors = {
        f"unet.{name}.gaps": torch.tensor([0, 3], dtype=torch.uint8),
        f"unet.{name}.values": torch.ones(2, dtype=torch.float16),
    }
    return tensors, {
        "shira.version": "1",
        "shira.info": '{"name": "forged"}',
        "shira.shapes": json.dumps({f"unet.{name}": list(weight.shape)}),
    }


@pytest.fixture(scope="module")
def engine(toy_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    library = AdapterLibrary(tmp_path_factory.mktemp("hostile"))
    return Engine(load_base(toy_base), library, "toy")


def values_with(value: float, parts: Parts) -> Parts:
    tensors, metadata = parts
    key = next(key for key in tensors if key.endswith(".values"))
    spoilt = tensors[key].clone()
    spoilt[0] = value
    return {**tensors, key: spoilt}, metadata


def indices_out_of_range(parts: Parts) -> Parts:
    tensors, metadata = parts
    shapes = {name: [1, 2] for name in json.loads(metadata["shira.shapes"])}
    return tensors, {**metadata, "shira.shapes": json.dumps(shapes)}


def claim(header: dict[str, object], length: int | None = None) -> bytes:
    """A file that is a header alone, `length` of which it says to be."""
    text = json.dumps(header).encode()
    return np.uint64(len(text) if length is None else length).tobytes() + text


FIVE_GB = 5 * 10**9
FILES = {
    "pickle": b"\x80\x04\x95pickle",
    "empty": b"",
    "header-of-5-gb": claim({}, FIVE_GB),
    "tensor-of-5-gb": claim(
        {"w.gaps": {"dtype": "U8", "shape": [FIVE_GB], "data_offsets": [0, FIVE_GB]}}
    ),
    "not-json": np.uint64(4).tobytes() + b"<b>!",
}
FORGERIES = {
    "nan": lambda parts: values_with(float("nan"), parts),
    "infinity": lambda parts: values_with(float("inf"), parts),
    "index-out-of-range": indices_out_of_range,
}
WORDS = {"nan": "NaN", "infinity": "infinity", "index-out-of-range": "of a weight with 2"}


def assert_refused(engine: Engine, name: str) -> str:
    """Its problem, once it is clear that it did no harm."""
    engine.library.rescan()
    before = {key: value.clone() for key, value in engine._pipe.unet.state_dict().items()}
    with pytest.raises(BrokenAdapterError, match=name):
        engine.generate(recipe(mix={name: 1.0}))
    for key, value in engine._pipe.unet.state_dict().items():
        assert torch.equal(value, before[key]), key
    (card,) = [card for card in adapter_cards(engine.library) if card["name"] == name]
    assert card["problem"]
    # Whoever sees the page learns nothing of where things lie on this machine.
    assert str(engine.library.folder) not in card["problem"]
    return str(card["problem"])


@pytest.mark.parametrize("name", FILES)
def test_files_that_are_no_adapters(engine: Engine, name: str) -> None:
    folder = engine.library.folder / name
    folder.mkdir()
    (folder / "adapter.safetensors").write_bytes(FILES[name])
    assert_refused(engine, name)


@pytest.mark.parametrize("name", FORGERIES)
def test_adapters_with_impossible_contents(engine: Engine, good: Parts, name: str) -> None:
    folder = engine.library.folder / name
    folder.mkdir()
    tensors, metadata = FORGERIES[name](good)
    # With a checksum that is right, so that the contents themselves have to be looked at.
    container.write(folder / "adapter.safetensors", tensors, metadata)
    assert WORDS[name] in assert_refused(engine, name)


def test_the_forger_can_write_a_good_file(engine: Engine, good: Parts) -> None:
    container.write(engine.library.folder / "forged" / "adapter.safetensors", *good)
    engine.library.rescan()
    assert engine.generate(recipe(mix={"forged": 1.0})).record.adapters[0].name == "forged"


def test_markup_in_metadata_and_thumbnail_is_only_text(engine: Engine, toy_base: Path) -> None:
    info = AdapterInfo(HOSTILE, title=HOSTILE, description=HOSTILE, trigger_words=(HOSTILE,))
    folder = make_adapter(toy_base, engine.library.folder / "marked", seed=1, info=info)
    (folder / "thumbnail.png").write_text(f"<svg onload='alert(1)'>{HOSTILE}</svg>")
    engine.library.rescan()
    (card,) = [card for card in adapter_cards(engine.library) if card["name"] == "marked"]
    assert (card["title"], card["words"], card["thumbnail"]) == (HOSTILE, [HOSTILE], "")
    engine.generate(recipe(mix={"marked": 1.0}))
