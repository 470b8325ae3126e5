"""Grids and blends as HTML: no text from outside becomes markup, progress says what is left."""

from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from studio_toys import HOSTILE, recipe

from shira_diffusion.metrics import Meeting
from studio.blends.heatmap import heat_map
from studio.blends.interference import Measuring, Pair
from studio.durations import duration
from studio.grids.axes import KIND
from studio.grids.grid import Cell, Grid
from studio.grids.plan import Plan, Spot
from studio.jobs import Job, State
from studio.judges.judging import Score
from studio.steps import Step
from studio.tabs import blendview, gridview
from studio.tabs.heatplot import heat_plot


class Tags(HTMLParser):
    """Which elements and handlers a piece of HTML has, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        assert not any(key.startswith("on") for key, _ in attrs)

    def handle_data(self, data: str) -> None:
        self.words += data


@pytest.fixture
def grid(tmp_path: Path) -> Grid:
    spots = (Spot(recipe(prompt=HOSTILE)), Spot(recipe(prompt=HOSTILE, seed=8), problem=HOSTILE))
    plan = Plan(KIND, HOSTILE, (HOSTILE, HOSTILE), (HOSTILE,), (HOSTILE, "b"), spots)
    score = Score("concept", HOSTILE, 0.5, HOSTILE)
    cells = (Cell(spots[0], scores=(score,)), Cell(spots[1], problem=HOSTILE))
    return Grid(tmp_path, plan, cells)


def test_texts_stay_texts(grid: Grid) -> None:
    seen = Tags(gridview.grid(grid, crisp=True))
    assert seen.tags == {"p", "div", "span", "figure", "figcaption", "b", "br"}
    # Caption (title and prompt), corner (two), column, row, score, problem.
    assert seen.words.count(HOSTILE) == 8
    titles = {"a": HOSTILE, "b": HOSTILE}
    met = Meeting(f"{HOSTILE}.weight", 1, 1, 2, awom=0.5, awor=0.5, bound=1.0)
    pair = Pair("a", "b", (met,), 2, 0.1)
    report = Tags(blendview.report([pair], titles))
    assert "img" not in report.tags
    assert report.words.count(HOSTILE) == 4
    assert "img" not in Tags(heat_plot(heat_map([met], "AWOM"), "AWOM", HOSTILE)).tags
    failed = Job(1, "a", "blend", {}, State.FAILED, 0.0, error=HOSTILE)
    assert "img" not in Tags(blendview.ended(failed)).tags
    assert HOSTILE in Tags(blendview.ended(failed)).words
    assert "img" not in Tags(blendview.kept(HOSTILE, HOSTILE)).tags
    assert "img" not in Tags(gridview.size(HOSTILE, wrong=True)).tags


def test_progress_counts_places_steps_and_time(grid: Grid) -> None:
    assert "Waiting for the model" in gridview.progress(None, None)
    working = replace(grid, at=0, step=Step(11, 22, 1.0), paces=(4.0, 6.0))
    words = Tags(gridview.progress(None, working)).words
    # One place is open, half of it is done, and a picture takes five seconds.
    assert words == "Picture 2 of 2 · step 11 of 22 · about 2 s left"
    assert "width:75.0%" in gridview.progress(None, working)
    assert "weight 3 of 12" in blendview.busy(Measuring(3, 12))


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.2, "1 s"), (89, "89 s"), (91, "2 min"), (3570, "1 h 00 min"), (7500, "2 h 05 min")],
)
def test_times_are_told_as_people_do(seconds: float, words: str) -> None:
    assert duration(seconds) == words
