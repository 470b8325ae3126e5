"""X/Y grids: what people type becomes values, and every cell gets exactly its own."""

import contextlib
import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from studio_toys import make_library, recipe

from shira_diffusion.errors import SettingError, UnknownAdapterError
from studio.grids.axes import KINDS, NOTHING, Draft, axis, numbers, plan
from studio.grids.plan import Plan
from studio.library import AdapterLibrary


@pytest.fixture(scope="module")
def library(toy_base: Path, tmp_path_factory: pytest.TempPathFactory) -> AdapterLibrary:
    return AdapterLibrary(make_library(toy_base, tmp_path_factory.mktemp("axes") / "adapters"))


def crossed(library: AdapterLibrary, rows: tuple[str, str], columns: tuple[str, str]) -> Plan:
    draft = Draft(recipe(), {"A": "ink", "B": "robot"}, {"A": 1.0, "B": 0.5})
    (first, one), (second, two) = rows, columns
    return plan(library, draft, axis(KINDS[first], one), axis(KINDS[second], two))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0, 0.5, 1", [0, 0.5, 1]),
        ("1", [1]),
        ("0:1:0.25", [0, 0.25, 0.5, 0.75, 1]),
        ("0:0.3:0.1", [0, 0.1, 0.2, 0.3]),
        ("-1:1", [-1, 0, 1]),
        ("3; 1\n3, 2:3", [3, 1, 2]),
        (" , ", []),
    ],
)
def test_numbers_and_ranges_are_read(text: str, expected: list[float]) -> None:
    assert numbers(text, "It") == expected


@pytest.mark.parametrize(
    "text", ["a", "1:0", "0:1:0", "0:1:-1", "nan", "inf", "0:inf", "1:2:3:4", "0:1e9", "1e999", ":"]
)
def test_what_is_no_number_is_named(text: str) -> None:
    with pytest.raises(SettingError, match="for It"):
        numbers(text, "It")


@given(st.lists(st.integers(-99, 99), min_size=1, unique=True))
def test_written_numbers_come_back(values: list[int]) -> None:
    assert numbers(", ".join(f"{value / 4}" for value in values), "It") == [v / 4 for v in values]


@given(st.text(max_size=30))
def test_no_text_breaks_the_reader(text: str) -> None:
    with contextlib.suppress(SettingError):
        assert all(one == one for one in numbers(text, "It"))


def test_strengths_cross_and_zero_is_the_base(library: AdapterLibrary) -> None:
    made = crossed(library, ("Strength of A", "0, 0.5"), ("Strength of B", "0, 1, 2"))
    assert (made.rows, made.columns) == (("0", "0.5"), ("0", "1", "2"))
    assert made.corner == ("Strength of A", "Strength of B")
    mixes = [dict(spot.recipe.mix) for spot in made.spots]
    full = [{"ink": a, "robot": b} for a, b in itertools.product((0, 0.5), (0, 1, 2))]
    assert mixes == [{name: one for name, one in mix.items() if one} for mix in full]
    assert made.pictures == 6


def test_each_kind_changes_its_own_setting(library: AdapterLibrary) -> None:
    made = crossed(library, ("Seed", "3:4"), ("Guidance", "2, 4.5"))
    assert [(spot.recipe.seed, spot.recipe.guidance) for spot in made.spots] == [
        (3, 2), (3, 4.5), (4, 2), (4, 4.5),
    ]  # fmt: skip
    made = crossed(library, ("Steps", "1, 2"), ("Prompt", "a dog\n\na cat\na dog"))
    assert made.columns == ("a dog", "a cat")
    assert [(spot.recipe.steps, spot.recipe.prompt) for spot in made.spots] == [
        (1, "a dog"), (1, "a cat"), (2, "a dog"), (2, "a cat"),
    ]  # fmt: skip
    made = crossed(library, ("Strength of A and B", "0.25"), ("Adapter B", "(none)\nlonely"))
    assert [dict(spot.recipe.mix) for spot in made.spots] == [
        {"ink": 0.25}, {"ink": 0.25, "lonely": 0.25},
    ]  # fmt: skip
    assert made.columns == ("none", "lonely")
    assert [member.name for member in made.members] == ["ink", "lonely"]


@pytest.mark.parametrize("turned", [False, True])
def test_words_are_put_into_the_prompts_of_the_other_axis(
    library: AdapterLibrary, turned: bool
) -> None:
    sides = ("Words in the prompt", "red, blue"), ("Prompt", "a red dog\na red cat")
    made = crossed(library, *(reversed(sides) if turned else sides))
    prompts = {spot.recipe.prompt for spot in made.spots}
    assert prompts == {"a red dog", "a blue dog", "a red cat", "a blue cat"}


def test_an_axis_may_be_left_out(library: AdapterLibrary) -> None:
    made = plan(library, Draft(recipe()), NOTHING, axis(KINDS["Seed"], "0:2"))
    assert (made.rows, made.columns) == (("",), ("0", "1", "2"))
    assert made.title == "Seed"


@pytest.mark.parametrize(
    ("rows", "columns", "words"),
    [
        (("Seed", "0:30"), ("Steps", "1"), "1 to 24 values"),
        (("Seed", ""), ("Steps", "1"), "needs 1 to"),
        (("Seed", "0.5"), ("Steps", "1"), "whole numbers"),
        (("Seed", "-1"), ("Steps", "1"), "seed"),
        (("Seed", "0:19"), ("Guidance", "0:9"), "20 x 10 = 200"),
        (("Seed", "0"), ("Seed", "1"), "Both axes"),
        (("Strength of A", "5"), ("Seed", "1"), "from -1 to 2"),
        (("Words in the prompt", "dragon, dog"), ("Seed", "1"), "no 'dragon'"),
    ],
)
def test_what_cannot_be_drawn_is_refused_before_it_begins(
    library: AdapterLibrary, rows: tuple[str, str], columns: tuple[str, str], words: str
) -> None:
    with pytest.raises(SettingError, match=words):
        crossed(library, rows, columns)


def test_an_unknown_adapter_is_named(library: AdapterLibrary) -> None:
    with pytest.raises(UnknownAdapterError, match="robt"):
        crossed(library, ("Adapter A", "robt"), ("Seed", "1"))
