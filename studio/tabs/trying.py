"""What the buttons of Blend do to try a blend: base, plain sum and blend from the same noise."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr

from shira_diffusion.errors import SettingError, ShiraError
from studio.blends import trial
from studio.errors import GridError
from studio.grids import runner
from studio.grids.grid import Grid
from studio.recipe import Recipe
from studio.service import Studio
from studio.tabs import grid_job, gridview
from studio.tabs.controls import choose_seed, read_size, showing, size_name
from studio.tabs.grid_job import Shown
from studio.tabs.telling import remark, told

BESIDE = {"Plain sum": 1, "Base": 0}
"""What the blend can be seen beside, and its column in the trial."""
BLEND = 2
"""The column of the blend."""


class Try(NamedTuple):
    """The settings of a trial."""

    prompt: Any
    seeds: Any
    steps: Any
    guidance: Any
    size: Any
    seed: Any
    fresh_seed: Any


@dataclass(frozen=True)
class TrialHandlers:
    """What the controls of a trial do."""

    studio: Studio

    def begin(self, draft: str, *values: Any) -> tuple[Any, ...]:
        """Put a trial in line; gives its grid's id, the seed, the buttons and the progress."""
        form = Try(*values)
        try:
            if not draft:
                raise SettingError("There is no blend yet: press Blend first.")
            found = self.studio.drafts.find(draft)
            parts = self.studio.drafts.account(found).blend.parts
            recipe = self._recipe(form)
            for words in self.studio.engine.remarks(replace(recipe, mix=parts)):
                remark(words)
            plan = trial.plan(self.studio.library, recipe, parts, draft, seeds=int(form.seeds or 1))
            name = self.studio.grids.begin(plan, self.studio.library)
            runner.submit(self.studio.worker, name)
        except ShiraError as error:
            raise told(error) from error
        return name, recipe.seed, *showing(running=True), gridview.progress(None, None)

    async def follow(self, current: str, beside: str) -> AsyncIterator[tuple[Any, ...]]:
        """Show a trial to its end; the outputs are `Shown`, the slider and the buttons."""
        rest = [gr.skip()] * (len(Shown._fields) + 1)
        yield *rest, gr.skip(), gr.skip()
        if not current:
            return
        try:
            async for shown, grid in grid_job.watched(self.studio, current):
                # The last word on a trial has no progress.
                yield *shown, _slider(grid, beside), *showing(running=bool(shown.progress))
        except GridError:  # it was thrown away since
            yield *Shown("", gr.skip(), ""), gr.skip(), *showing(running=False)
        except (ShiraError, gr.Error) as error:
            yield "", *rest[1:], *showing(running=False)
            raise error if isinstance(error, gr.Error) else told(error) from error

    def open_page(self, current: str) -> Try:
        """For a page that opens: the form as it was for its trial."""
        try:
            plan = self.studio.grids.open(current).plan if current else None
        except GridError:
            plan = None
        if plan is None:
            return Try(*[gr.skip()] * len(Try._fields))
        recipe = plan.spots[0].recipe
        size = (recipe.width, recipe.height)
        return Try(
            recipe.prompt,
            len(plan.rows),
            recipe.steps,
            recipe.guidance,
            size_name(size) if size in self.studio.engine.base.sizes else gr.skip(),
            recipe.seed,
            gr.skip(),
        )

    def belong(self, current: str, draft: str) -> tuple[Any, ...]:
        """Clear away a trial that is of another draft, unless it is at work.

        The outputs are `Shown` and the slider.
        """
        try:
            spots = self.studio.grids.open(current).plan.spots if current else ()
        except GridError:
            spots = ()
        own = any(draft in spot.recipe.mix for spot in spots)
        if own or not draft or runner.job_of(self.studio.worker, current):
            return *[gr.skip()] * len(Shown._fields), gr.skip()
        return *Shown("", empty_trial(), ""), gr.update(value=None, label="Before and after")

    def beside(self, current: str, beside: str) -> Any:
        """The slider with the blend beside something else."""
        try:
            return _slider(self.studio.grids.open(current), beside) if current else gr.skip()
        except GridError:
            return gr.skip()

    def stop(self, current: str) -> None:
        """Stop the trial on the page."""
        grid_job.stop(self.studio, current)

    def _recipe(self, form: Try) -> Recipe:
        width, height = read_size(self.studio.engine.base, form.size)
        return Recipe(
            prompt=form.prompt or "",
            steps=int(form.steps or 0),
            guidance=form.guidance,
            seed=choose_seed(form.seed, fresh=form.fresh_seed),
            width=width,
            height=height,
        )


def picture(studio: Studio, current: str, draft: str) -> Path | None:
    """The first picture of the blend in the trial `current`, if it is of this draft."""
    try:
        cells = studio.grids.open(current).cells if current else ()
    except GridError:
        return None
    return next((cell.picture for cell in cells if draft in cell.mix and cell.picture), None)


def empty_trial() -> str:
    """What stands in the place of the pictures before there is a trial."""
    return gridview.empty("Base, plain sum and blend", "The same words, seed and noise.")


def _slider(grid: Grid, beside: str) -> Any:
    """The first row's two pictures, once both are there."""
    left, right = grid.cells[BESIDE[beside]].picture, grid.cells[BLEND].picture
    if left is None or right is None:
        return gr.skip()
    return gr.update(value=(str(left), str(right)), label=f"{beside} (left), blend (right)")
