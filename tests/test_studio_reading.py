"""Settings in words: adapters named in prompts, and what PNGs of this and other apps carry."""

import re
import string
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin
from studio_toys import recipe

from shira_diffusion.errors import SettingError
from studio import reading
from studio.errors import PictureError
from studio.infotext import Record, to_infotext
from studio.pictures import write_png
from studio.prompt import read_tags, write_tags
from studio.reading import Found, from_infotext, read_picture
from studio.recipe import Recipe
from studio.tabs.rack import read_rack, write_rack
from studio.timing import Timing, schedule

IMAGE = Image.new("RGB", (8, 8), "orange")
DEFAULT = recipe(prompt="-", seed=99, sampler="UniPC")
# What AUTOMATIC1111's web UI 1.10 writes, with the parts that we have no use for.
FOREIGN = """a castle, (old:1.2) <lora:ink:0.8>
by night
Negative prompt: fog,
rain
Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7, Seed: 123, Size: 512x768, \
Model hash: 31e35c80fc, Model: sd_xl_base_1.0, Lora hashes: "ink: 0123456789ab", Version: v1.10.1"""

names = st.text(string.ascii_letters + string.digits + "-_. ", min_size=1).map(str.strip)
mixes = st.dictionaries(
    names.filter(bool), st.integers(-20, 40).map(lambda tenths: tenths / 10), max_size=4
)


@pytest.mark.parametrize(
    ("prompt", "words", "mix"),
    [
        ("a fox", "a fox", {}),
        ("a fox <lora:ink:0.8>", "a fox", {"ink": 0.8}),
        ("a fox, <lora:ink>, by night", "a fox, by night", {"ink": 1.0}),
        ("<shira:my ink:-0.5> a  fox", "a fox", {"my ink": -0.5}),
        ("a <LoRA:a:1><lora:b:2> fox", "a fox", {"a": 1.0, "b": 2.0}),
        ("<lora:a:1> fox <lora:a:0.5>", "fox", {"a": 0.5}),
        ("(a fox:1.2), [old|new]\n<lora:a:1>\nby night", "(a fox:1.2), [old|new]\n\nby night",
         {"a": 1.0}),
        ("a < b, <b>bold</b>", "a < b, <b>bold</b>", {}),
    ],
)  # fmt: skip
def test_adapters_are_read_out_of_a_prompt(prompt: str, words: str, mix: dict[str, float]) -> None:
    assert read_tags(prompt) == (words, mix)


@pytest.mark.parametrize("tag", ["<lora:>", "<lora::1>", "<lora:ink:much>", "<lora:ink:1:0.5>"])
def test_a_tag_that_says_nothing_is_refused_with_the_tag(tag: str) -> None:
    with pytest.raises(SettingError, match=re.escape(repr(tag))):
        read_tags(f"a fox {tag}")


@given(mixes)
def test_tags_round_trip(mix: dict[str, float]) -> None:
    assert read_tags(f"a fox {write_tags(mix)}".strip()) == ("a fox", mix)


def test_foreign_infotext_is_read_as_far_as_it_goes() -> None:
    read = from_infotext(FOREIGN, DEFAULT)
    assert read.remarks == ()
    assert read.recipe == Recipe(
        prompt="a castle, (old:1.2)\nby night",
        negative_prompt="fog,\nrain",
        steps=20,
        guidance=7.0,
        seed=123,
        width=512,
        height=768,
        mix={"ink": 0.8},
        sampler="DPM++ 2M Karras",
    )
    alone = from_infotext("just words, nothing else: 3", DEFAULT).recipe
    assert alone == recipe(prompt="just words, nothing else: 3", seed=99, sampler="UniPC")


line = st.text(string.ascii_letters + string.digits + ' ,.:()"', min_size=1).map(str.strip)


@given(line.filter(lambda words: words and "Steps" not in words), line, mixes)
def test_our_infotext_round_trips(prompt: str, negative: str, mix: dict[str, float]) -> None:
    mix = {name: max(-1.0, min(strength, 2.0)) for name, strength in mix.items()}
    # Commas beside a tag are tidied up, which is no loss.
    prompt = ", ".join(" ".join(part.split()) for part in prompt.split(",") if part.strip())
    if not prompt:
        return
    made = recipe(prompt=prompt, negative_prompt=negative, mix=mix, sampler="Euler")
    record = Record(made, base='toy, (with) "marks": 1', sampler="Euler")
    assert from_infotext(to_infotext(record), DEFAULT) == Found(made)


@pytest.mark.parametrize(
    ("tag", "strength", "remarks"),
    [
        ("<lora:ink:0.8:0.5>", 0.8, ("<lora:ink:0.8:0.5> counts as strength 0.8 here.",)),
        ("<lora:ink:4>", 2.0, ("<lora:ink:4> counts as strength 2 here.",)),
        ("<lora:ink:-3:1>", -1.0, ("<lora:ink:-3:1> counts as strength -1 here.",)),
        ("<lora:ink:-1>", -1.0, ()),
        ("<lora:ink>", 1.0, ()),
    ],
)
def test_strengths_of_other_apps_are_made_to_fit(
    tag: str, strength: float, remarks: tuple[str, ...]
) -> None:
    found = from_infotext(f"a castle {tag}\nSteps: 2", DEFAULT)
    assert (found.recipe.prompt, found.recipe.mix) == ("a castle", {"ink": strength})
    assert found.remarks == remarks


@pytest.mark.parametrize("pairs", ["Steps: many", "Steps: 5, Size: 3", "Steps: 5, Seed: -1"])
def test_infotext_that_makes_no_recipe_is_refused(pairs: str) -> None:
    with pytest.raises(PictureError, match="cannot be read"):
        from_infotext(f"a fox\n{pairs}", DEFAULT)


def save(path: Path, **texts: str) -> Path:
    info = PngImagePlugin.PngInfo()
    for key, text in texts.items():
        info.add_text(key, text)
    IMAGE.save(path, pnginfo=info)
    return path


def test_our_png_gives_its_recipe_exactly(tmp_path: Path) -> None:
    made = recipe(mix={"ink": 1 / 3}, timing={"ink": "late"}, sampler="Euler a")
    write_png(IMAGE, tmp_path / "a.png", Record(made, base="toy"))
    assert read_picture(tmp_path / "a.png", DEFAULT) == Found(made)
    foreign = read_picture(save(tmp_path / "b.png", parameters=FOREIGN), DEFAULT)
    assert foreign.recipe.seed == 123


def test_files_without_settings_are_refused_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    IMAGE.save(tmp_path / "a.jpg")
    (tmp_path / "pickle.png").write_bytes(b"\x80\x04\x95pickle")
    whole = save(tmp_path / "whole.png", Comment="x" * 1000).read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[:-30])
    # A bomb: a few bytes that would be a terabyte of pixels.
    header = b"IHDR" + (10**6).to_bytes(4, "big") * 2 + whole[24:29]
    checked = header + zlib.crc32(header).to_bytes(4, "big")
    (tmp_path / "bomb.png").write_bytes(whole[:12] + checked + whole[33:])
    save(tmp_path / "broken.png", shira_studio='{"version": 1}')
    for name, words in {
        "a.jpg": "no PNG",
        "pickle.png": "no PNG",
        "cut.png": "damaged",
        "bomb.png": "damaged",
        "whole.png": "no settings",
        "broken.png": "cannot be read",
    }.items():
        with pytest.raises(PictureError, match=words):
            read_picture(tmp_path / name, DEFAULT)
    monkeypatch.setattr(reading, "MAX_BYTES", 10)
    with pytest.raises(PictureError, match="larger"):
        read_picture(tmp_path / "whole.png", DEFAULT)


def test_the_rack_means_what_it_shows() -> None:
    rack = {
        "ink": {"strength": 0.5, "on": True, "timing": "late"},
        "robot": {"strength": 1, "on": True, "timing": "always"},
        "off": {"strength": 1, "on": False, "timing": "early"},
    }
    mix, timing = read_rack(rack)
    assert (mix, timing) == ({"ink": 0.5, "robot": 1}, {"ink": "late"})
    assert write_rack(mix, timing) == {name: rack[name] for name in mix}
    assert read_rack(None) == ({}, {})
    for spoilt in (["ink"], {"ink": 1.0}, {"ink": {}}, "ink"):
        with pytest.raises(SettingError, match="reload"):
            read_rack(spoilt)


@pytest.mark.parametrize("timing", [{"ink": "soon"}, {"gone": "late"}, ["ink"], {"ink": None}])
def test_a_timing_that_cannot_be_is_refused(timing: object) -> None:
    with pytest.raises(SettingError):
        recipe(mix={"ink": 1.0}, timing=timing)


@given(st.dictionaries(names, st.sampled_from(Timing), max_size=5), st.integers(1, 30))
def test_a_schedule_step_by_step(timing: dict[str, Timing], steps: int) -> None:
    mix = {name: float(len(name)) for name in timing}
    turns = [name for name in mix if timing[name] == "alternate"]
    plan = schedule(mix, timing)
    for step in range(steps):
        expected = {name for name in mix if timing[name] == "always"}
        expected |= {name for name in mix if timing[name] == "early" and step < steps / 2}
        expected |= {name for name in mix if timing[name] == "late" and step >= steps / 2}
        expected |= set(turns[step % len(turns) :][:1] if turns else [])
        assert plan(step, steps) == {name: mix[name] for name in expected}
