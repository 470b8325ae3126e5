"""Pictures and their settings: both texts in the PNG, names, refusals."""

import json
import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin
from studio_toys import recipe

from shira_diffusion.errors import SettingError
from studio.errors import PictureError
from studio.infotext import AdapterUse, Record, from_json, to_infotext, to_json
from studio.pictures import PictureStore, new_name, write_png
from studio.recipe import MAX_GUIDANCE, MAX_SEED, MAX_STEPS, Recipe

IMAGE = Image.new("RGB", (32, 32), "orange")
SPOILT = to_json(Record(recipe(), base="toy")).replace('"toy"', "5")
words = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
uses = st.builds(
    AdapterUse, words, st.floats(-1, 2), st.sampled_from(["shira", "lora"]), st.just("ab" * 32)
)
records = st.builds(
    Record,
    recipe=st.builds(
        Recipe,
        prompt=words.filter(str.strip),
        negative_prompt=words,
        steps=st.integers(1, MAX_STEPS),
        guidance=st.floats(0, MAX_GUIDANCE),
        seed=st.integers(0, MAX_SEED),
        width=st.just(32),
        height=st.just(32),
        mix=st.dictionaries(words, st.floats(-1, 2), max_size=3),
        sampler=words,
    ),
    base=words,
    fingerprints=st.dictionaries(words, words, max_size=2),
    adapters=st.lists(uses, max_size=3).map(tuple),
    sampler=words,
    switch_ms=st.floats(0, 1e6),
    sampling_s=st.floats(0, 1e6),
)


def parse_as_automatic1111(text: str) -> tuple[str, str, dict[str, str]]:
    """An independent reader of infotext: the last line holds the pairs, JSON strings are quoted."""
    *lines, last = text.split("\n")
    pairs = re.findall(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)', last)
    values = {key: json.loads(value) if value.startswith('"') else value for key, value in pairs}
    negative = [i for i, line in enumerate(lines) if line.startswith("Negative prompt: ")]
    cut = negative[0] if negative else len(lines)
    rest = "\n".join(lines[cut:]).removeprefix("Negative prompt: ")
    return "\n".join(lines[:cut]), rest, values


@given(records)
def test_json_round_trip(record: Record) -> None:
    assert from_json(to_json(record)) == record


def test_infotext_is_read_by_automatic1111s_rules() -> None:
    record = Record(
        recipe(
            prompt="a castle, (old:1.2)\nby night",
            negative_prompt="fog",
            mix={"ink": 0.8, "r": -0.5},
            timing={"r": "late"},
        ),
        base="emoji-xl",
        fingerprints={"unet": "0123456789abcdef"},
        adapters=(
            AdapterUse("ink", 0.8, "shira", "fedcba" * 10),
            AdapterUse("r", -0.5, "shira", "9" * 64),
        ),
        sampler="Euler",
    )
    prompt, negative, values = parse_as_automatic1111(to_infotext(record))
    assert prompt == "a castle, (old:1.2)\nby night <lora:ink:0.8> <lora:r:-0.5>"
    assert negative == "fog"
    assert values == {
        "Steps": "2",
        "Sampler": "Euler",
        "CFG scale": "3",
        "Seed": "7",
        "Size": "32x32",
        "Model": "emoji-xl",
        "Base fingerprint": "unet: 0123456789ab",
        "Adapter timing": "r: late",
        "Adapter hashes": "ink: fedcbafedcba, r: 999999999999",
        "Version": "SHiRA Studio",
    }


def test_png_carries_both_texts_and_the_same_pixels(tmp_path: Path) -> None:
    store = PictureStore(tmp_path)
    record = Record(recipe(prompt="ein Schloß, 城"), base="toy")
    name = store.save(IMAGE, record)
    assert store.record(name) == record
    with Image.open(store.path(name)) as image:
        assert image.info["parameters"] == to_infotext(record)
        assert image.tobytes() == IMAGE.tobytes()
    assert [path.name for path in tmp_path.iterdir()] == [f"{name}.png"]


@pytest.mark.skipif(os.name != "posix", reason="modes are a POSIX thing")
def test_a_picture_has_the_rights_of_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    write_png(IMAGE, tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_recent_is_newest_first_and_knows_only_our_names(tmp_path: Path) -> None:
    names = [new_name() for _ in range(5)]
    assert len({name[-32:] for name in names}) == 5
    for name in reversed(names):
        IMAGE.save(tmp_path / f"{name}.png")
    IMAGE.save(tmp_path / "holiday.png")
    store = PictureStore(tmp_path)
    assert store.recent(10) == names[::-1]
    assert store.recent(2) == names[:2:-1]


# The last but one has the form of an id, but there is no such picture.
@pytest.mark.parametrize(
    "name",
    ["", "../secret", "/etc/passwd", "holiday", f"20260101-000000-000000-{'0' * 32}", "a\0b"],
)
def test_only_ids_of_pictures_become_paths(tmp_path: Path, name: str) -> None:
    IMAGE.save(tmp_path / "holiday.png")
    IMAGE.save(tmp_path.parent / "secret.png")
    with pytest.raises(PictureError):
        PictureStore(tmp_path).path(name)


def test_a_picture_without_our_settings_is_refused(tmp_path: Path) -> None:
    store = PictureStore(tmp_path)
    bare, damaged, foreign = new_name(), new_name(), new_name()
    IMAGE.save(tmp_path / f"{bare}.png")
    (tmp_path / f"{damaged}.png").write_bytes(b"\x89PNG\r\n\x1a\nrubbish")
    info = PngImagePlugin.PngInfo()
    info.add_text("shira_studio", '{"version": 1, "recipe": {"prompt": 5}}')
    IMAGE.save(tmp_path / f"{foreign}.png", pnginfo=info)
    for name, reason in ((bare, "no settings"), (damaged, "cannot be read"), (foreign, "cannot")):
        with pytest.raises(PictureError, match=reason):
            store.record(name)


@pytest.mark.parametrize("text", ["", "[]", "null", "{}", '{"version": 2}', "[" * 100_000, SPOILT])
def test_records_that_we_did_not_write_are_refused(text: str) -> None:
    with pytest.raises(PictureError):
        from_json(text)


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    target = tmp_path / "a.png"
    target.write_bytes(b"before")
    with pytest.raises(AttributeError):
        write_png(None, target)
    assert target.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [target]


def test_a_recipe_names_every_fault_at_once() -> None:
    with pytest.raises(SettingError) as caught:
        recipe(prompt="  ", steps=0, guidance=float("nan"), seed=-1, mix={"ink": 3, "x": "1"})
    message = str(caught.value)
    for part in ("prompt is empty", "steps", "guidance", "seed", "'ink'", "'x'"):
        assert part in message


@pytest.mark.parametrize(
    "changes",
    [
        {"prompt": None},
        {"prompt": "x" * 4001},
        {"steps": True},
        {"steps": 2.5},
        {"steps": 10**400},
        {"guidance": "4"},
        {"seed": 2**32},
        {"mix": ["ink"]},
        {"mix": {"ink": float("inf")}},
        {"width": 0},
    ],
)
def test_a_recipe_refuses_what_cannot_be(changes: dict[str, object]) -> None:
    with pytest.raises(SettingError):
        recipe(**changes)
