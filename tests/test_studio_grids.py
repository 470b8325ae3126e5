"""Grids as folders: cells saved as they finish, taken up again, never made twice; exports."""

import dataclasses
import html.parser
import json
import shutil
import threading
from pathlib import Path

import gradio as gr
import pytest
from PIL import Image
from studio_toys import SIDE, make_library, make_studio, recipe

from shira_diffusion.errors import SettingError, ShiraError
from studio.blends import trial
from studio.errors import GridError, StoppedError
from studio.following import wait
from studio.grids import export, runner
from studio.grids.estimate import seconds
from studio.grids.grid import Grid, fill
from studio.grids.plan import MAX_CELLS, Plan, Spot, read_plan, sealed, write_plan
from studio.grids.store import GridStore
from studio.infotext import RECORD_KEY, from_json
from studio.jobs import State
from studio.judges.judging import Member, Score, Subject
from studio.library import AdapterLibrary
from studio.pictures import PictureStore
from studio.service import Studio
from studio.shelf.trash import TrashError
from studio.tabs.comparing import CompareHandlers

MARKUP = '<script>alert("1")</script>'


@pytest.fixture(scope="module")
def studio(toy_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Studio:
    studio = make_studio(toy_base, tmp_path_factory.mktemp("grids"))
    yield studio
    studio.close()


@pytest.fixture
def store(tmp_path: Path) -> GridStore:
    return GridStore(tmp_path / "grids")


def line(*mixes: dict[str, float], **changes: object) -> Plan:
    """One row with a picture for each mix."""
    spots = tuple(Spot(recipe(mix=mix)) for mix in mixes)
    settings = {
        "kind": "test",
        "title": f"A line {MARKUP}",
        "corner": ("", "Mix"),
        "rows": ("row",),
        "columns": tuple(f"column {i} {MARKUP}" for i in range(len(spots))),
        "spots": spots,
    }
    return Plan(**{**settings, **changes})


def filled(studio: Studio, grid: Grid, **options: object) -> Grid:
    return fill(studio.engine, grid, report=lambda _: None, **options)


class Eye:
    """A judge that knows castles, and how often it looked."""

    concepts = ("castle", "ink")
    styles = ("ink",)

    def __init__(self) -> None:
        self.looks = 0

    def look(self, image: Image.Image, subject: Subject) -> tuple[Score, ...]:
        self.looks += 1
        assert image.size == (SIDE, SIDE)
        return tuple(Score("concept", one, 0.25, "robot") for one in subject.concepts)


def test_a_plan_comes_back_from_disk_as_it_was(studio: Studio, tmp_path: Path) -> None:
    plan = line({"ink": 0.5}, {}, members=(Member("ink", ("ink style",), ("ink", "pens")),))
    plan = sealed(plan, studio.library)
    assert plan.files == (("ink", studio.library.find("ink").sha256()),)
    write_plan(plan, tmp_path)
    assert read_plan(tmp_path) == plan


def test_a_cells_files_keep_their_names() -> None:
    # Recipes gain settings; what was made before must be found all the same.
    assert Spot(recipe()).key == "3e34ef4f7978b9f42627845f"
    assert Spot(recipe(mix={"ink": 0.5}, negative_prompt="fog")).key == "711a5782fb33628f34452e1e"
    assert Spot(recipe(seed=8)).key != Spot(recipe()).key


@pytest.mark.parametrize(
    "damage",
    [
        lambda plan: "not JSON",
        lambda plan: "[]",
        lambda plan: json.dumps({**plan, "version": 99}),
        lambda plan: json.dumps({**plan, "rows": ["a", "b", "c"]}),
        lambda plan: json.dumps({**plan, "spots": [{"recipe": {"prompt": 1}, "problem": ""}]}),
        lambda plan: json.dumps({key: one for key, one in plan.items() if key != "members"}),
    ],
)
def test_a_damaged_plan_is_told(tmp_path: Path, damage: object) -> None:
    write_plan(line({}), tmp_path)
    path = tmp_path / "plan.json"
    path.write_text(damage(json.loads(path.read_text())))
    with pytest.raises(GridError):
        read_plan(tmp_path)


def test_too_many_cells_are_refused() -> None:
    with pytest.raises(SettingError, match=f"at most {MAX_CELLS}"):
        line(*[{}] * (MAX_CELLS + 1))


def test_a_stopped_grid_goes_on_where_it_was(studio: Studio, store: GridStore) -> None:
    name = store.begin(line({}, {"ink": 1.0}, {"robot": 1.0}, {}), studio.library)
    stop = threading.Event()

    def report(grid: Grid) -> None:
        if grid.at == 1 and grid.step:
            stop.set()

    with pytest.raises(StoppedError):
        fill(studio.engine, store.open(name), report=report, stop=stop)
    halfway = store.open(name)
    # The last cell has the first one's recipe, and so its picture.
    assert [bool(cell.picture) for cell in halfway.cells] == [True, False, False, True]
    before = halfway.cells[0].picture.stat()

    reports: list[Grid] = []
    done = fill(studio.engine, halfway, report=reports.append)
    assert done.whole
    assert done.at is None
    assert done.cells[0].picture.stat() == before
    assert {grid.at for grid in reports} == {1, 2}
    assert len(done.paces) == 2
    assert reports[-1].seconds_left < done.paces[0] * 2
    assert store.open(name).cells == done.cells
    for cell in done.cells:
        with Image.open(cell.picture) as image:
            assert from_json(image.info[RECORD_KEY]).recipe == cell.spot.recipe
            alone = studio.engine.generate(cell.spot.recipe).image
            assert image.tobytes() == alone.tobytes()


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ShiraError("out of ink"), "out of ink"),
        (RuntimeError("no power"), "Something unforeseen happened: RuntimeError: no power"),
    ],
)
def test_a_failed_cell_keeps_its_error_and_is_tried_again(
    studio: Studio,
    store: GridStore,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    told: str,
) -> None:
    name = store.begin(line({}, {"ink": 1.0}, {"robot": 1.0}), studio.library)
    generate = studio.engine.generate

    def sometimes(given: object, **options: object) -> object:
        if given.mix == {"ink": 1.0}:
            raise error
        return generate(given, **options)

    with monkeypatch.context() as patched:
        patched.setattr(studio.engine, "generate", sometimes)
        grid = filled(studio, store.open(name))
    assert [cell.problem for cell in grid.cells] == ["", told, ""]
    assert [cell.problem for cell in store.open(name).cells] == ["", told, ""]
    assert not grid.whole
    assert filled(studio, store.open(name)).whole
    assert [cell.problem for cell in store.open(name).cells] == [""] * 3


def test_scores_are_kept_and_asked_for_once(studio: Studio, store: GridStore) -> None:
    members = (Member("ink", ("ink style",), ("ink",)),)
    name = store.begin(line({}, {"ink": 1.0}, {}, members=members), studio.library)
    unjudged = filled(studio, store.open(name))
    assert [cell.scores for cell in unjudged.cells] == [()] * 3
    eye = Eye()
    judged = filled(studio, store.open(name), judge=eye)
    assert eye.looks == 2
    assert judged.cells[1].scores == (Score("concept", "castle", 0.25, "robot"),)
    assert store.open(name).cells == judged.cells
    assert judged.paces == ()
    filled(studio, store.open(name), judge=eye)
    assert eye.looks == 2


def test_a_half_written_note_costs_nothing_but_a_look(studio: Studio, store: GridStore) -> None:
    name = store.begin(line({}), studio.library)
    grid = filled(studio, store.open(name), judge=Eye())
    (note,) = (grid.folder / "cells").glob("*.json")
    note.write_text('{"problem": "", "sco')
    assert store.open(name).cells[0].picture == grid.cells[0].picture
    assert filled(studio, store.open(name), judge=Eye()).cells == grid.cells


@pytest.mark.parametrize("name", ["", "..", "../grids", "x" * 200, MARKUP, "nul"])
def test_an_id_is_never_a_path(store: GridStore, name: str) -> None:
    with pytest.raises(GridError):
        store.open(name)


def test_recent_grids_newest_first_without_broken_ones(studio: Studio, store: GridStore) -> None:
    names = [store.begin(line({}), studio.library) for _ in range(3)]
    (store.folder / names[1] / "plan.json").write_text("broken")
    (store.folder / "stray").mkdir()
    assert [name for name, _ in store.recent(("test",), 9)] == [names[2], names[0]]
    assert [name for name, _ in store.recent(("test",), 1)] == [names[2]]
    assert store.recent(("other",), 9) == []


def test_a_grid_is_thrown_away_and_comes_back_as_it_was(studio: Studio, store: GridStore) -> None:
    name, other = (store.begin(line({}), studio.library) for _ in range(2))
    made = filled(studio, store.open(name))
    gone = store.discard(name)
    assert "A line" in gone.title
    assert [one for one, _ in store.recent((), 9)] == [other]
    for hostile in (name, "", "..", ".trash", f"../grids/{other}"):
        with pytest.raises(GridError):
            store.discard(hostile)
    again = GridStore(store.folder)
    assert again.restore(gone.ticket) == name
    assert again.open(name).cells == made.cells
    with pytest.raises(TrashError):
        again.restore(gone.ticket)


def test_a_grid_at_work_is_not_thrown_away(studio: Studio) -> None:
    handlers = CompareHandlers(studio)
    name = studio.grids.begin(line({}), studio.library)
    with studio.engine._lock:
        job = runner.submit(studio.worker, name)
        with pytest.raises(gr.Error, match="stop it first"):
            handlers.delete(name)
    wait(studio.worker, job.id, 60)
    tried = studio.grids.begin(line({}, kind=trial.KIND), studio.library)
    assert tried in {one for _, one in handlers.settle("")[-1]["choices"]}
    progress, grid, current, trash = handlers.delete(name)
    assert (progress, current) == ("", "")
    assert "One seed" in grid
    assert [one["ticket"] for one in trash["bin"]] == [trash["deleted"]]
    assert handlers.empty_trash()["bin"] == []
    with pytest.raises(gr.Error, match="no grid"):
        handlers.delete(name)


def test_a_job_fills_the_grid_and_exports_it(studio: Studio) -> None:
    name = studio.grids.begin(line({}, {"robot": 1.0}), studio.library)
    job = runner.submit(studio.worker, name)
    assert wait(studio.worker, job.id, 60).job.state == State.DONE
    grid = studio.grids.open(name)
    assert grid.whole
    assert export.exported(grid) is not None
    assert runner.job_of(studio.worker, name) is None


def test_an_adapter_that_changed_stops_a_grid(toy_base: Path, tmp_path: Path) -> None:
    library = AdapterLibrary(make_library(toy_base, tmp_path / "adapters"))
    plan = sealed(line({"ink": 1.0}), library)
    shutil.copytree(library.folder / "robot", library.folder / "ink", dirs_exist_ok=True)
    with pytest.raises(GridError, match="has changed"):
        runner.require_unchanged(plan, library)
    shutil.rmtree(library.folder / "ink")
    library.rescan()
    with pytest.raises(GridError, match="cannot go on"):
        runner.require_unchanged(plan, library)


class Reader(html.parser.HTMLParser):
    """Every tag and attribute of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.sources: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value for key, value in attrs if key in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_is_whole_in_itself_and_escaped(studio: Studio, store: GridStore) -> None:
    plan = line({}, {"ink": 1.0}, {"robot": 1.0})
    broken = dataclasses.replace(plan.spots[2], problem=f"no {MARKUP}")
    plan = dataclasses.replace(plan, spots=(*plan.spots[:2], broken))
    name = store.begin(plan, studio.library)
    grid = filled(studio, store.open(name), judge=Eye())
    made = export.export(grid)
    reader = Reader()
    reader.feed(made.page.read_text(encoding="utf-8"))
    assert "script" not in reader.tags
    assert len(reader.sources) == 2
    assert all(source.startswith("data:image/png;base64,") for source in reader.sources)
    assert f"no {MARKUP}" in reader.text
    assert f"column 1 {MARKUP}" in reader.text
    assert "castle 25 %" in reader.text
    assert "a castle" in reader.text
    with Image.open(made.sheet) as sheet:
        assert sheet.width > 3 * SIDE


def test_large_pictures_travel_smaller_in_the_page(tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    Image.effect_noise((700, 600), 80).save(path)
    uri = export._data_uri(path)
    assert uri.startswith("data:image/webp;base64,")
    assert len(uri) < path.stat().st_size


def test_the_time_is_estimated_from_the_last_picture(
    studio: Studio, store: GridStore, tmp_path: Path
) -> None:
    plan, pictures = line({}, {"ink": 1.0}, {}), PictureStore(tmp_path / "pictures")
    assert seconds(plan, pictures, store) is None
    filled(studio, store.open(store.begin(line({}), studio.library)))
    assert seconds(plan, pictures, store) > 0
    sample = studio.engine.generate(recipe())
    pictures.save(sample.image, dataclasses.replace(sample.record, sampling_s=3.0))
    # Two different pictures of as many steps.
    assert seconds(plan, pictures, store) == pytest.approx(6.0)
