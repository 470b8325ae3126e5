"""SHiRA beside LoRA: every cell exact, missing twins told, losses counted, sheets drawn."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from studio_toys import SIDE, make_adapter, make_library, make_studio, recipe

from shira_diffusion import AdapterInfo
from shira_diffusion.errors import SettingError, UnknownAdapterError
from studio.grids import compare
from studio.grids.compare import Choice
from studio.grids.grid import Cell, Grid, fill
from studio.grids.plan import Plan
from studio.grids.sheet import CELL, GAP, LABEL, SheetCell, contact_sheet
from studio.grids.wording import caption, headline, score_words
from studio.judges.judging import Score
from studio.library import AdapterLibrary
from studio.recipe import MAX_SEED
from studio.service import Studio


@pytest.fixture(scope="module")
def studio(toy_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    studio = make_studio(toy_base, tmp_path_factory.mktemp("compare"))
    yield studio
    studio.close()


def planned(studio: Studio, a: str = "ink", b: str = "robot", seeds: int = 1) -> Plan:
    return compare.plan(studio.library, recipe(), Choice(a), Choice(b, 0.5), seeds=seeds)


def test_every_cell_is_what_its_mix_gives_alone(studio: Studio) -> None:
    plan = planned(studio)
    assert (plan.rows, plan.columns) == (
        ("SHiRA", "LoRA"),
        ("Base", "Ink", "Robot", "Ink + Robot"),
    )
    mixes = [
        {}, {"ink": 1.0}, {"robot": 0.5}, {"ink": 1.0, "robot": 0.5},
        {}, {"ink-lora": 1.0}, {"robot-lora": 0.5}, {"ink-lora": 1.0, "robot-lora": 0.5},
    ]  # fmt: skip
    assert [spot.recipe.mix for spot in plan.spots] == mixes
    name = studio.grids.begin(plan, studio.library)
    reports: list[Grid] = []
    grid = fill(studio.engine, studio.grids.open(name), report=reports.append)
    for cell, mix in zip(grid.cells, mixes, strict=True):
        alone = studio.engine.generate(replace(recipe(), mix=mix))
        with Image.open(cell.picture) as image:
            assert image.tobytes() == alone.image.tobytes()
    assert len({cell.picture for cell in grid.cells}) == plan.pictures == 7
    assert [report.done for report in reports if report.step is None] == [0, 2, 3, 4, 5, 6, 7]


def test_seeds_are_rows_of_their_own_and_wrap(studio: Studio) -> None:
    plan = compare.plan(
        studio.library, recipe(seed=MAX_SEED), Choice("ink"), Choice("robot"), seeds=2
    )
    assert plan.rows == (
        f"SHiRA · seed {MAX_SEED}", "SHiRA · seed 0", f"LoRA · seed {MAX_SEED}", "LoRA · seed 0",
    )  # fmt: skip
    assert [spot.recipe.seed for spot in plan.spots] == ([MAX_SEED] * 4 + [0] * 4) * 2
    assert plan.pictures == 14


def test_a_missing_twin_is_said_in_its_cells_only(studio: Studio) -> None:
    problems = [spot.problem for spot in planned(studio, "lonely", "robot").spots]
    assert [bool(problem) for problem in problems] == [False] * 5 + [True, False, True]
    assert "lonely-lora" in problems[5]


def test_a_twin_that_is_no_lora_stays_out_of_the_lora_row(toy_base: Path, tmp_path: Path) -> None:
    library = make_library(toy_base, tmp_path)
    shutil.rmtree(library / "ink-lora")
    shutil.copytree(library / "lonely", library / "ink-lora")
    plan = compare.plan(AdapterLibrary(library), recipe(), Choice("ink"), Choice("robot"))
    problems = [spot.problem for spot in plan.spots]
    assert [bool(problem) for problem in problems] == [False] * 5 + [True, False, True]
    assert "not a LoRA" in problems[5]


def test_choices_that_cannot_be_compared_are_refused(studio: Studio) -> None:
    with pytest.raises(SettingError, match="different"):
        planned(studio, "ink", "ink")
    with pytest.raises(UnknownAdapterError, match="nearest"):
        planned(studio, "ink", "robt")
    with pytest.raises(SettingError, match=r"no SHiRA adapter.*'lora'"):
        planned(studio, "ink", "robot-lora")
    with pytest.raises(SettingError, match="from 1 to 8"):
        planned(studio, seeds=9)


def test_a_dora_is_not_drawn_as_shira(toy_base: Path, tmp_path: Path) -> None:
    folder = make_library(toy_base, tmp_path)
    info = AdapterInfo(name="fold", method="dora")
    make_adapter(toy_base, folder / "fold", seed=3, info=info)
    with pytest.raises(SettingError, match=r"'fold' is no SHiRA adapter.*'dora'"):
        compare.plan(AdapterLibrary(folder), recipe(), Choice("fold"), Choice("robot"))


def judged(studio: Studio, *values: tuple[float, float]) -> Grid:
    """A grid of two seeds whose cells have these scores for "robot" and for "ink", as (c, s)."""
    plan = planned(studio, seeds=2)
    cells = [
        Cell(
            spot,
            scores=(
                Score("concept", "robot", c, "robot"),
                Score("style", "ink", s, "ink"),
            ),
        )
        for spot, (c, s) in zip(plan.spots, values, strict=True)
    ]
    return Grid(Path(), plan, tuple(cells))


def test_a_loss_is_the_mean_of_single_minus_joint(studio: Studio) -> None:
    # Base, ink alone, robot alone, both: two seeds by SHiRA, two by LoRA.
    grid = judged(
        studio,
        (0.0, 0.0), (0.1, 0.9), (1.0, 0.0), (0.5, 0.7),
        (0.0, 0.0), (0.1, 0.7), (0.8, 0.0), (0.7, 0.7),
        (0.0, 0.0), (0.1, 0.6), (0.9, 0.0), (0.1, 0.8),
        (0.0, 0.0), (0.1, 0.6), (0.9, 0.0), (0.3, 0.8),
    )  # fmt: skip
    found = {(one.kind, one.method): one for one in compare.losses(grid)}
    assert list(found)[:2] == [("concept", "SHiRA"), ("concept", "LoRA")]
    assert found["concept", "SHiRA"].single == pytest.approx(0.9)
    assert found["concept", "SHiRA"].joint == pytest.approx(0.6)
    assert found["concept", "LoRA"].lost == pytest.approx(0.7)
    assert found["style", "SHiRA"].lost == pytest.approx(0.1)
    assert found["style", "LoRA"].lost == pytest.approx(-0.2)
    assert {one.pictures for one in found.values()} == {2}
    lines = headline(grid)
    assert lines[0].startswith("Concept loss of robot: SHiRA 0.30 (alone 0.90, together 0.60); ")
    assert lines[1].startswith("Style loss of ink: SHiRA 0.10 ")
    assert "LoRA nothing, it gains 0.20 (alone 0.60, together 0.80)" in lines[1]
    assert "mean of 2 seeds" in lines[2]


def test_without_scores_there_is_no_headline(studio: Studio) -> None:
    plan = planned(studio)
    assert headline(Grid(Path(), plan, tuple(map(Cell, plan.spots)))) == []


def test_what_all_pictures_share_is_in_the_caption(studio: Studio) -> None:
    plan = planned(studio, seeds=2)
    words = caption(Grid(Path(), plan, tuple(map(Cell, plan.spots))))
    assert "a castle" in words
    assert "seed" not in words.removeprefix(plan.title)
    scores = [Score("concept", "robot", 0.256, "cat"), Score("style", "high-contrast", 1, "noto")]
    assert score_words(scores) == "robot 26 %   high contrast style 100 %"


@pytest.mark.parametrize("side", [SIDE, 100])
def test_small_pictures_are_enlarged_with_square_pixels(tmp_path: Path, side: int) -> None:
    picture = Image.new("RGB", (side, side), "white")
    picture.putpixel((0, 0), (255, 0, 0))
    picture.save(tmp_path / "a.png")
    sheet = contact_sheet(
        "x" * 500, [[SheetCell("a", tmp_path / "a.png"), SheetCell("b", None, "none " * 99)]]
    )
    zoom, left, top = CELL // side, GAP, GAP + 2 * LABEL
    corner = sheet.crop((left, top, left + zoom, top + zoom))
    assert corner.getcolors() == [(zoom * zoom, (255, 0, 0))]
    assert sheet.getpixel((left + zoom, top)) == (255, 255, 255)
    assert sheet.getpixel((left, top + zoom)) == (255, 255, 255)


def test_notes_and_a_foot_make_the_sheet_taller(tmp_path: Path) -> None:
    plain = contact_sheet("a", [[SheetCell("a", None)]] * 2)
    noted = contact_sheet("a", [[SheetCell("a", None, note="b")]] * 2, ["one", "two"])
    assert noted.height == plain.height + 2 * LABEL + 2 * LABEL
    assert noted.width == plain.width
