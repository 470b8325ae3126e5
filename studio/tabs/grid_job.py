"""A grid on the page: started, followed, stopped, taken up again; for Compare and Blend."""

import time
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import gradio as gr

from studio.errors import GridError, JobError
from studio.following import follow
from studio.grids import runner
from studio.grids.grid import Grid
from studio.jobs import State
from studio.service import Studio
from studio.tabs import gridview
from studio.tabs.telling import remark, told
from studio.worker import Standing

TOLD_EVERY = 0.25
"""Seconds between two words on the progress; a busy page falls behind more."""


class Shown(NamedTuple):
    """What a grid's part of the page shows; `current` is the grid's id."""

    progress: Any
    grid: Any
    current: Any


async def watched(studio: Studio, name: str) -> AsyncIterator[tuple[Shown, Grid]]:
    """Yield the page's part and the grid after each change, last as it is when its job is over.

    Raises what a failed job said, after everything that it made was shown.
    """
    grid = studio.grids.open(name)
    job = runner.job_of(studio.worker, name)
    standing: Standing | None = None
    drawn: tuple[Any, ...] | None = None
    told_at = 0.0
    if job:
        async for standing in follow(studio.worker, job.id):
            grid = runner.live(grid, standing.progress)
            same, drawn = drawn == _mark(grid), _mark(grid)
            if same and time.monotonic() - told_at < TOLD_EVERY:
                continue
            told_at = time.monotonic()
            # The pictures are sent again only when there is a new one.
            shown = gr.skip() if same else draw(studio, grid)
            yield Shown(gridview.progress(standing, grid), shown, name), grid
    grid = studio.grids.open(name)
    yield Shown("", draw(studio, grid), name), grid
    if standing:
        _tell_end(standing, grid)


def draw(studio: Studio, grid: Grid) -> str:
    """The grid's HTML."""
    return gridview.grid(grid, crisp=studio.engine.base.is_small)


def stop(studio: Studio, name: str) -> None:
    """Ask the job of this grid to stop; without one nothing happens."""
    job = runner.job_of(studio.worker, name) if name else None
    if job:
        studio.worker.cancel(job.id)


def can_go_on(studio: Studio, name: str) -> bool:
    """Whether the grid has empty places that nobody is filling."""
    if not name:
        return False
    try:
        return not studio.grids.open(name).whole and runner.job_of(studio.worker, name) is None
    except GridError:
        return False


def _mark(grid: Grid) -> tuple[Any, ...]:
    return grid.at, grid.done, sum(len(cell.scores) for cell in grid.cells)


def _tell_end(standing: Standing, grid: Grid) -> None:
    if standing.job.state == State.FAILED:
        raise told(JobError(standing.job.error))
    if standing.job.state == State.CANCELLED:
        kept = sum(cell.picture is not None for cell in grid.cells)
        remark(f"Stopped. {kept} of {len(grid.cells)} places are filled and kept.")
