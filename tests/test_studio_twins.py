"""A LoRA is a twin by what both files say of their trainings, not by its name."""

from dataclasses import replace
from pathlib import Path

import pytest

from shira_diffusion import AdapterInfo
from studio.grids import compare
from studio.grids.compare import Choice
from studio.library import AdapterLibrary
from studio.twins import objection
from tests.studio_toys import make_adapter, recipe

SPARSE = AdapterInfo(
    name="fox",
    method="shira",
    trigger_words=("fox",),
    base_fingerprint={"unet": "a"},
    training={"data": "fox", "images": "7"},
)
TWIN = replace(SPARSE, name="fox-lora", method="lora")


@pytest.mark.parametrize("data", ["fox", "fox-lora"])
def test_a_lora_of_the_same_pictures_base_and_words_is_the_twin(data: str) -> None:
    assert objection(SPARSE, replace(TWIN, training={"data": data, "images": "7"})) == ""


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"method": "shira"}, "not a LoRA"),
        ({"training": {}}, "same pictures"),
        ({"training": {"data": "dog", "images": "7"}}, "same pictures"),
        ({"training": {"data": "fox", "images": "3"}}, "same pictures"),
        ({"training": {**TWIN.training, "converted": "rank 16 of shira"}}, "converted"),
        ({"base_fingerprint": {"unet": "b"}}, "another base"),
        ({"trigger_words": ("hound",)}, "other trigger words"),
    ],
)
def test_any_other_lora_is_a_stranger(change: dict[str, object], reason: str) -> None:
    assert reason in objection(SPARSE, replace(TWIN, **change))


def test_two_files_that_say_nothing_are_no_twins() -> None:
    bare = replace(SPARSE, training={})
    assert "same pictures" in objection(bare, replace(bare, method="lora"))


def test_compare_draws_no_stranger_as_a_twin(toy_base: Path, tmp_path: Path) -> None:
    folder = tmp_path / "adapters"
    for seed, (name, change) in enumerate(
        {
            "fox": {},
            "fox-lora": {"method": "lora", "training": {"data": "dog", "images": "7"}},
            "ink": {"training": {"data": "ink", "images": "4"}},
            "ink-lora": {"method": "lora", "training": {"data": "ink", "images": "4"}},
        }.items()
    ):
        info = replace(SPARSE, name=name, base_fingerprint={}, **change)
        make_adapter(toy_base, folder / name, seed=seed, info=info)
    library = AdapterLibrary(folder)
    assert library.twin_of("fox") is None
    twin = library.twin_of("ink")
    assert twin is not None
    assert twin.name == "ink-lora"
    plan = compare.plan(library, recipe(), Choice("fox"), Choice("ink"))
    problems = [spot.problem for spot in plan.spots]
    assert problems[:5] == [""] * 5
    assert problems[6] == ""
    assert "'fox-lora' did not learn from the same pictures" in problems[5] == problems[7]
