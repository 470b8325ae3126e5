"""Hints about words that a small base does not know."""

import json
from pathlib import Path

import pytest
from studio_toys import load_base, make_library, recipe

from emoji_xl.stages import MANIFEST
from emoji_xl.words import write_words
from studio.engine import Engine
from studio.library import AdapterLibrary
from studio.vocabulary import Vocabulary

SHIPPED = MANIFEST.parent.parent / "models" / "emoji-xl"


@pytest.fixture(scope="module")
def shipped() -> Vocabulary:
    vocabulary = Vocabulary.read(SHIPPED)
    assert vocabulary is not None
    return vocabulary


def test_the_list_that_ships_is_what_the_recipe_writes(tmp_path: Path) -> None:
    write_words(MANIFEST, tmp_path / "words.json")
    assert (tmp_path / "words.json").read_text() == (SHIPPED / "words.json").read_text()
    listed = json.loads((tmp_path / "words.json").read_text())
    known = set(listed["concepts"])
    assert all(set(concepts) <= known for concepts in listed["alike"].values())


def test_a_base_without_a_list_knows_any_word(tmp_path: Path) -> None:
    assert Vocabulary.read(tmp_path) is None
    assert Vocabulary.read(tmp_path / "missing.safetensors") is None


@pytest.mark.parametrize(
    "prompt",
    [
        "lion",
        "a cute ice cream cone, fluent style",
        "Flat emoji of LIONS!",
        "piñata, noto style",
        "fox, flat style, pixel art",
        "",
    ],
)
def test_known_words_get_no_hint(prompt: str, shipped: Vocabulary) -> None:
    assert shipped.hint(prompt, (), {}) == ""


@pytest.mark.parametrize(
    ("prompt", "words", "advice"),
    [
        ("a kitten, noto style", ["kitten"], "Try cat."),
        ("elefant in pixar style", ["elefant", "pixar"], "Try elephant."),
        ("blorp, noto style", ["blorp"], "It knows 418 things in 7 styles"),
        ("blorp and blorp", ["blorp"], "It knows 418 things in 7 styles"),
        ("a unicorn, noto style", ["unicorn"], "Switch on the adapter Unicorn."),
    ],
)
def test_unknown_words_are_named_with_what_to_try(
    prompt: str, words: list[str], advice: str, shipped: Vocabulary
) -> None:
    assert shipped.unknown(prompt) == words
    hint = shipped.hint(prompt, (), {"Unicorn": ("unicorn",), "Ink": ("ink style",)})
    assert all(f"“{word}”" in hint for word in words)
    assert advice in hint


def test_each_unknown_word_gets_the_adapter_that_was_made_for_it(shipped: Vocabulary) -> None:
    shelved = {
        "All": ("unicorn", "blorp style"),
        "Unicorn": ("unicorn",),
        "Blorp": ("blorp style",),
    }
    hint = shipped.hint("unicorn, blorp style", (), shelved)
    assert "Switch on the adapter Unicorn for “unicorn”, Blorp for “blorp”." in hint
    both = shipped.hint("unicorn, blorp style", (), {"All": shelved["All"]})
    assert "Switch on the adapter All for “unicorn” and “blorp”." in both


def test_trigger_words_of_the_mix_are_known(shipped: Vocabulary) -> None:
    assert shipped.hint("unicorn, ink style", ("unicorn", "ink style"), {}) == ""


def test_a_picture_comes_with_the_hint(toy_base: Path, tmp_path: Path) -> None:
    library = AdapterLibrary(make_library(toy_base, tmp_path / "adapters"))
    vocabulary = Vocabulary(("castle",), ("noto",), ("pixel art",), ("a", "style"), {})
    engine = Engine(load_base(toy_base), library, "toy", vocabulary)
    assert engine.generate(recipe(prompt="a castle, noto style")).remarks == ()
    (remark,) = engine.generate(recipe(prompt="a robot, noto style")).remarks
    assert "“robot”" in remark
    assert "Switch on the adapter Robot." in remark
    # The adapter's trigger is "sks robot".
    assert engine.generate(recipe(prompt="a robot", mix={"robot": 1.0})).remarks == ()
