"""What the base is made of: which pictures, which split, which words."""

import json
import random
import re
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from emoji_xl import concepts
from emoji_xl.artwork import (
    IconSet,
    Picture,
    find_icon,
    normalise,
    read_manifest,
    render,
    split_of,
    write_pack,
)
from emoji_xl.captions import (
    caption,
    made_up_caption,
    made_up_word,
    modified_caption,
    plain_caption,
    with_article,
)
from emoji_xl.examples import CONCEPTS, STYLES, example_captions
from emoji_xl.sheet import spread
from emoji_xl.stages import MANIFEST

SQUARE = '<path fill="#f00" d="M0 0h10v10H0z"/>'


def icon_set(**icons: str) -> IconSet:
    info = {"name": "Test", "license": {"spdx": "MIT"}}
    bodies = {name: {"body": body} for name, body in icons.items()}
    names = {normalise(name): name for name in bodies}
    return IconSet(bodies, names, {"1f951": "by-codepoint"}, (20, 20), info)


@pytest.fixture(scope="module")
def pictures() -> list[Picture]:
    return read_manifest(MANIFEST)


def test_nothing_held_out_is_trained_on(pictures: list[Picture]) -> None:
    trained = [p for p in pictures if p.split == "train"]
    assert {p.style for p in trained} == set(concepts.TRAIN_STYLES)
    assert not {p.concept for p in trained} & set(concepts.GROUP_A + concepts.GROUP_B)
    held_out = {(p.style, p.concept) for p in pictures if p.split == "pair"}
    assert len(held_out) == concepts.HELD_OUT_PAIRS
    assert not held_out & {(p.style, p.concept) for p in trained}


def test_reserved_styles_and_concepts_are_marked_so(pictures: list[Picture]) -> None:
    reserved = {p.file for p in pictures if p.split == "reserved"}
    expected = {
        p.file
        for p in pictures
        if p.style in concepts.RESERVED_STYLES or p.concept in concepts.GROUP_B
    }
    assert reserved == expected


def test_every_held_out_concept_is_drawn_by_five_styles(pictures: list[Picture]) -> None:
    for concept in concepts.GROUP_A + concepts.GROUP_B:
        assert sum(p.concept == concept for p in pictures) >= 5, concept


def test_manifest_names_licence_and_source_of_every_style(pictures: list[Picture]) -> None:
    styles = json.loads(MANIFEST.read_text())["styles"]
    assert {p.style for p in pictures} <= set(styles)
    for credit in styles.values():
        assert credit["license"] in {"MIT", "Apache-2.0", "CC-BY-4.0", "CC-BY-SA-4.0"}
        assert credit["source"].startswith("https://")


def test_examples_are_held_out_captioned_and_credited(pictures: list[Picture]) -> None:
    by_file = {p.file.removesuffix(".png").replace("/", "-"): p for p in pictures}
    for name in [*STYLES, *CONCEPTS]:
        folder = MANIFEST.parent.parent / "examples" / name
        images = sorted(folder.glob("*.png"))
        assert len(images) in (range(24, 33) if name in STYLES else range(5, 8))
        credit_text = (folder / "CREDITS.md").read_text()
        for image in images:
            picture = by_file[image.stem]
            assert picture.split == ("style" if name in STYLES else "concept")
            assert image.with_suffix(".txt").read_text() == example_captions(picture)
            assert f"`{picture.style}-*.png`" in credit_text
            assert Image.open(image).size == (128, 128)


@pytest.mark.parametrize(
    ("emoji", "found"),
    [
        ({"label": "avocado", "hexcode": "1F951", "emoji": "\U0001f951"}, "by-codepoint"),
        ({"label": "jack-o-lantern", "hexcode": "1F383", "emoji": "\U0001f383"}, "jackolantern"),
        # Older sets use the character's Unicode name.
        ({"label": "pizza", "hexcode": "1F355", "emoji": "\U0001f355"}, "sliceofpizza"),
        ({"label": "whale", "hexcode": "1F40B", "emoji": "\U0001f40b"}, None),
    ],
)
def test_icons_are_found_by_code_point_label_or_unicode_name(
    emoji: dict[str, str], found: str | None
) -> None:
    icons = icon_set(jackolantern=SQUARE, sliceofpizza=SQUARE)
    assert find_icon(emoji, icons, ()) == found


def test_other_packages_names_help(pictures: list[Picture]) -> None:
    emoji = {"label": "whale", "hexcode": "1F40B", "emoji": "\U0001f40b"}
    assert find_icon(emoji, icon_set(**{"big-whale": SQUARE}), ["Big Whale"]) == "big-whale"


def test_rendering_is_square_and_transparent_outside() -> None:
    image = render(icon_set(a=SQUARE).svg("a"))
    assert image.size == (128, 128)
    assert image.getpixel((10, 10)) == (255, 0, 0, 255)
    assert image.getpixel((120, 120))[3] == 0


def test_same_artwork_gives_the_same_bytes(tmp_path: Path) -> None:
    pictures = [Picture("noto", "red apple", "a", "train")]
    for name in ("one.zip", "two.zip"):
        write_pack(pictures, {"noto": icon_set(a=SQUARE)}, tmp_path / name)
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()
    assert zipfile.ZipFile(tmp_path / "one.zip").namelist() == ["noto/red-apple.png"]


def test_splits() -> None:
    held_out = frozenset({("noto", "pizza")})
    assert split_of("noto", "pizza", held_out) == "pair"
    assert split_of("flat", "pizza", held_out) == "train"
    assert split_of("noto", "unicorn", held_out) == "concept"
    assert split_of("openmoji", "unicorn", held_out) == "style"
    assert split_of("openmoji", "owl", held_out) == "reserved"
    assert split_of("streamline", "pizza", held_out) == "reserved"


def test_captions_name_concept_and_style_mostly() -> None:
    texts = [caption("noto", "owl", random.Random(seed)) for seed in range(1000)]
    assert 930 <= sum("owl" in text for text in texts) <= 970
    assert 890 <= sum("noto" in text for text in texts) <= 950
    assert all("owl" in text or "noto" in text for text in texts)
    assert plain_caption("noto", "owl") == "owl, noto style"
    assert [with_article(word) for word in ("owl", "pizza")] == ["an owl", "a pizza"]


def test_a_modifier_stands_behind_the_caption_or_before_it() -> None:
    texts = [modified_caption("noto", "owl", random.Random(s), "pixel art") for s in range(300)]
    behind = sum(text.endswith(", pixel art") for text in texts)
    assert 220 <= behind <= 260
    assert behind + sum(text.startswith("pixel art ") for text in texts) == 300


def test_made_up_captions_hold_a_word_that_no_caption_has() -> None:
    plain = {w for s in range(1000) for w in words_of(caption("noto", "owl", random.Random(s)))}
    texts = [made_up_caption("noto", "owl", random.Random(seed)) for seed in range(1000)]
    # A short made-up word may be an article by chance.
    assert sum(not words_of(text) <= plain for text in texts) >= 950
    # In the place of the concept or of the style in one of five each.
    assert 700 <= sum("owl" in text for text in texts) <= 800
    assert 680 <= sum("noto" in text for text in texts) <= 780


def words_of(text: str) -> set[str]:
    return set(re.findall("[a-z]+", text))


def test_made_up_words_are_words_that_nobody_knows() -> None:
    words = {made_up_word(random.Random(seed)) for seed in range(300)}
    assert len(words) > 200
    assert all(word.isalpha() and word.islower() and len(word) <= 9 for word in words)


def test_sheet_takes_styles_in_turn(pictures: list[Picture]) -> None:
    trained = [p for p in pictures if p.split == "train"]
    chosen = spread(trained, 14)
    assert [p.style for p in chosen[:7]] == sorted(concepts.TRAIN_STYLES)
    assert len({p.file for p in chosen}) == 14
