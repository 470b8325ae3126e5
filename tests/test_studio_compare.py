"""The grid of SHiRA and LoRA: every cell exact, failures kept to themselves."""

import shutil
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from studio_toys import SIDE, make_library, make_studio, recipe

from shira_diffusion.errors import SettingError, ShiraError, UnknownAdapterError
from studio.grids import compare
from studio.grids.compare import Choice, Grid
from studio.errors import StoppedError
from studio.infotext import RECORD_KEY, from_json
from studio.library import AdapterLibrary
from studio.service import Studio
from studio.grids.sheet import CELL, GAP, LABEL, SheetCell, contact_sheet


@pytest.fixture(scope="module")
def studio(toy_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Studio:
    return make_studio(toy_base, tmp_path_factory.mktemp("compare"))


def planned(studio: Studio, a: str = "ink", b: str = "robot") -> Grid:
    return compare.plan(studio.library, recipe(), Choice(a), Choice(b, 0.5))


def test_every_cell_is_what_its_mix_gives_alone(studio: Studio) -> None:
    reports: list[Grid] = []
    grid = compare.run(studio.engine, planned(studio), studio.comparisons, report=reports.append)
    assert [(cell.method, cell.label, cell.mix) for cell in grid.cells] == [
        ("SHiRA", "Base", {}),
        ("SHiRA", "Ink", {"ink": 1.0}),
        ("SHiRA", "Robot", {"robot": 0.5}),
        ("SHiRA", "Ink + Robot", {"ink": 1.0, "robot": 0.5}),
        ("LoRA", "Base", {}),
        ("LoRA", "Ink", {"ink-lora": 1.0}),
        ("LoRA", "Robot", {"robot-lora": 0.5}),
        ("LoRA", "Ink + Robot", {"ink-lora": 1.0, "robot-lora": 0.5}),
    ]
    for cell in grid.cells:
        assert cell.picture is not None
        alone = studio.engine.generate(replace(recipe(), mix=cell.mix))
        with Image.open(cell.picture) as image:
            assert image.tobytes() == alone.image.tobytes()
            assert from_json(image.info[RECORD_KEY]).recipe == replace(recipe(), mix=cell.mix)
    assert grid.cells[0].picture == grid.cells[4].picture
    assert len({cell.picture for cell in grid.cells}) == 7
    assert [report.done for report in reports if report.step is None] == [0, 2, 3, 4, 5, 6, 7]
    assert grid.sheet is not None
    with Image.open(grid.sheet) as sheet:
        assert sheet.size == (4 * (CELL + GAP) + GAP, GAP + LABEL + 2 * (LABEL + CELL + GAP))


def test_a_missing_twin_is_said_in_its_cells_only(studio: Studio) -> None:
    grid = planned(studio, "lonely", "robot")
    grid = compare.run(studio.engine, grid, studio.comparisons, report=lambda _: None)
    problems = [bool(cell.problem) for cell in grid.cells]
    assert problems == [False] * 5 + [True, False, True]
    assert "lonely-lora" in grid.cells[5].problem
    assert grid.sheet is not None


def test_a_cell_that_fails_does_not_hold_up_the_others(
    studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    generate = studio.engine.generate

    def sometimes(given: object, **options: object) -> object:
        if given.mix == {"ink": 1.0}:
            raise ShiraError("out of ink")
        return generate(given, **options)

    monkeypatch.setattr(studio.engine, "generate", sometimes)
    grid = compare.run(studio.engine, planned(studio), studio.comparisons, report=lambda _: None)
    assert [cell.problem for cell in grid.cells] == ["", "out of ink", "", "", "", "", "", ""]
    assert grid.done == 8


def test_a_base_that_fails_is_not_tried_again_for_the_other_row(
    studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []

    def fail(given: object, **_: object) -> object:
        tried.append(given.mix)
        raise ShiraError("out of luck")

    monkeypatch.setattr(studio.engine, "generate", fail)
    grid = compare.run(studio.engine, planned(studio), studio.comparisons, report=lambda _: None)
    assert tried.count({}) == 1
    assert [cell.problem for cell in grid.cells] == ["out of luck"] * 8


def test_a_twin_that_is_no_lora_stays_out_of_the_lora_row(toy_base: Path, tmp_path: Path) -> None:
    library = make_library(toy_base, tmp_path)
    shutil.rmtree(library / "ink-lora")
    shutil.copytree(library / "lonely", library / "ink-lora")
    grid = compare.plan(AdapterLibrary(library), recipe(), Choice("ink"), Choice("robot"))
    problems = [bool(cell.problem) for cell in grid.cells]
    assert problems == [False] * 5 + [True, False, True]
    assert "not a LoRA" in grid.cells[5].problem


def test_a_stop_keeps_what_was_done(studio: Studio, tmp_path: Path) -> None:
    stop, reports = threading.Event(), []

    def report(grid: Grid) -> None:
        reports.append(grid)
        if grid.at == 2 and grid.step:
            stop.set()

    with pytest.raises(StoppedError):
        compare.run(studio.engine, planned(studio), tmp_path, report=report, stop=stop)
    (folder,) = tmp_path.iterdir()
    assert sorted(path.name for path in folder.iterdir()) == ["1.png", "2.png"]
    halted = compare.halted(reports[-1])
    assert halted.at is None
    assert [bool(cell.picture) for cell in halted.cells] == [True, True, False, False, True] + [
        False
    ] * 3
    assert halted.done == 8


def test_choices_that_cannot_be_compared_are_refused(studio: Studio) -> None:
    with pytest.raises(SettingError, match="different"):
        planned(studio, "ink", "ink")
    with pytest.raises(UnknownAdapterError, match="nearest"):
        planned(studio, "ink", "robt")
    with pytest.raises(SettingError, match="is a LoRA"):
        planned(studio, "ink", "robot-lora")


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
