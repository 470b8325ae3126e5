"""The adapters that ship: whole, made for the base that ships, in pairs of equal size."""

import math
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from safetensors import safe_open

from emoji_xl.examples import CONCEPTS, STYLES
from shira_diffusion import Adapter, AdapterSwitcher
from shira_diffusion.pipeline import load_base

ROOT = Path(__file__).parent.parent
NAMES = [*STYLES, *CONCEPTS]


@pytest.fixture(scope="module")
def base() -> StableDiffusionXLPipeline:
    return load_base(ROOT / "models" / "emoji-xl", device="cpu")


def load(name: str) -> Adapter:
    return Adapter.load(ROOT / "adapters" / name / "adapter.safetensors")


def stored_values(name: str) -> int:
    with safe_open(ROOT / "adapters" / name / "adapter.safetensors", "pt") as file:
        return sum(math.prod(file.get_slice(key).get_shape()) for key in file.keys())  # noqa: SIM118


def test_nothing_else_ships() -> None:
    folders = {path.name for path in (ROOT / "adapters").iterdir() if path.is_dir()}
    assert folders == {*NAMES, *(f"{name}-lora" for name in NAMES)}


@pytest.mark.parametrize("name", [*NAMES, *(f"{name}-lora" for name in NAMES)])
def test_it_comes_with_card_and_thumbnail_and_leaves_no_trace(
    name: str, base: StableDiffusionXLPipeline
) -> None:
    folder = ROOT / "adapters" / name
    assert (folder / "thumbnail.png").read_bytes().startswith(b"\x89PNG")
    assert "## Data" in (folder / "card.md").read_text()
    adapter = load(name)
    assert adapter.info.name == name
    assert adapter.info.method == ("lora" if name.endswith("-lora") else "shira")
    before = {key: value.clone() for key, value in base.unet.state_dict().items()}
    switcher = AdapterSwitcher(base)
    switcher.add(name, adapter)
    with switcher.using({name: 1.0}):
        changed = [k for k, v in base.unet.state_dict().items() if not torch.equal(v, before[k])]
        assert len(changed) == len(adapter.deltas)
    assert all(torch.equal(v, before[k]) for k, v in base.unet.state_dict().items())


@pytest.mark.parametrize("name", NAMES)
def test_twins_have_as_many_parameters(name: str) -> None:
    assert stored_values(f"{name}-lora") == pytest.approx(load(name).nnz, rel=0.02)


@pytest.mark.parametrize("name", NAMES)
def test_trigger_words_stand_in_every_caption(name: str) -> None:
    captions = [path.read_text() for path in (ROOT / "examples" / name).glob("*.txt")]
    words = load(name).info.trigger_words
    assert words
    assert all(word in caption for word in words for caption in captions)
    assert load(f"{name}-lora").info.trigger_words == words
