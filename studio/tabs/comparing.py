"""What the buttons of Compare do."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import gradio as gr

from shira_diffusion.errors import SettingError, ShiraError
from studio.blends import trial
from studio.durations import duration
from studio.errors import GridError
from studio.grids import axes, compare, estimate, runner
from studio.grids.axes import Draft
from studio.grids.compare import Choice
from studio.grids.grid import Grid
from studio.grids.plan import Plan
from studio.pictures import made_words
from studio.recipe import Recipe
from studio.service import Studio
from studio.tabs import grid_job, gridview
from studio.tabs.axis_fields import axis_choices, read_axis
from studio.tabs.controls import choose_seed, read_size, showing, with_word
from studio.tabs.grid_job import Shown
from studio.tabs.pairs import adapter_choices
from studio.tabs.telling import remark, told
from studio.tabs.widgets import binned

TWINS, CROSSED = "SHiRA beside LoRA", "X/Y grid"
OWN = (compare.KIND, axes.KIND)
"""The kinds of grids that are begun here."""
EARLIER = 40


class Form(NamedTuple):
    """What the person sets, in the order that handlers take it."""

    prompt: Any
    a: Any
    strength_a: Any
    b: Any
    strength_b: Any
    layout: Any
    seeds: Any
    rows: Any
    rows_text: Any
    rows_names: Any
    columns: Any
    columns_text: Any
    columns_names: Any
    steps: Any
    guidance: Any
    size: Any
    seed: Any
    fresh_seed: Any


@dataclass(frozen=True)
class CompareHandlers:
    """What the buttons of the tab do."""

    studio: Studio

    def size(self, *values: Any) -> str:
        """How large the grid would be and how long it would take, or what is wrong with it."""
        try:
            plan = self._plan(Form(*values), draft=True)
        except ShiraError as error:
            return gridview.size(str(error), wrong=True)
        many = len(plan.spots)
        words = f"{len(plan.rows)} × {len(plan.columns)} = {many} places"
        if plan.pictures != many:
            words += f", {plan.pictures} different pictures"
        seconds = estimate.seconds(plan, self.studio.pictures, self.studio.grids)
        if seconds is not None:
            words += f", about {duration(seconds)}"
        return gridview.size(words)

    async def start(self, *values: Any) -> AsyncIterator[tuple[Any, ...]]:
        """Begin a new grid and fill it; the outputs are `Shown` and the seed."""
        form = Form(*values)
        try:
            plan = self._plan(form)
            seed = plan.spots[0].recipe.seed
            for words in self._remarks(plan):
                remark(words)
            name = self.studio.grids.begin(plan, self.studio.library)
            runner.submit(self.studio.worker, name)
            async for shown, _ in grid_job.watched(self.studio, name):
                yield *shown, seed
        except ShiraError as error:
            raise told(error) from error

    async def resume(self, current: str) -> AsyncIterator[Shown]:
        """Go on with the grid on the page."""
        try:
            runner.submit(self.studio.worker, current)
            async for shown, _ in grid_job.watched(self.studio, current):
                yield shown
        except ShiraError as error:
            raise told(error) from error

    def pick(self, chosen: str | None, current: str) -> str:
        """The grid that was chosen; a list that is left without a choice changes nothing."""
        return chosen or current

    def running(self, current: str) -> str:
        """For a page that opens: the grid on it, else the one that is being filled."""
        if current:
            return current
        open_ones = (
            name
            for name, grid in self.studio.grids.recent(OWN, EARLIER)
            if not grid.whole and runner.job_of(self.studio.worker, name)
        )
        return next(open_ones, "")

    async def follow(self, current: str) -> AsyncIterator[Shown]:
        """Show a grid as it is; one that is being filled is followed to its end."""
        # A generator that yields nothing would empty the page.
        yield Shown(gr.skip(), gr.skip(), gr.skip())
        try:
            if current:
                async for shown, _ in grid_job.watched(self.studio, current):
                    yield shown
        except ShiraError as error:
            raise told(error) from error

    def stop(self, current: str) -> None:
        """Stop the grid on the page."""
        grid_job.stop(self.studio, current)

    def delete(self, current: str) -> tuple[Any, ...]:
        """Throw the grid on the page away; the outputs are `Shown` and the trash."""
        try:
            if runner.job_of(self.studio.worker, current):
                raise GridError("This grid is still being filled: stop it first.")
            ticket = self.studio.grids.discard(current).ticket
        except ShiraError as error:
            raise told(error) from error
        return *Shown("", empty(), ""), binned(self.studio.grids.trash, ticket)

    def restore(self, event: gr.EventData) -> tuple[str, Any]:
        """Bring a grid back; gives its id and the trash."""
        try:
            name = self.studio.grids.restore(str(event.ticket))
        except ShiraError as error:
            raise told(error) from error
        return name, binned(self.studio.grids.trash)

    def empty_trash(self) -> Any:
        """Delete for good what was thrown away."""
        self.studio.grids.trash.empty()
        return binned(self.studio.grids.trash)

    def arm(self) -> tuple[Any, ...]:
        """At the press of a button: say that it goes on."""
        hidden = gr.update(visible=False)
        return *showing(running=True), gridview.progress(None, None), hidden, hidden

    def settle(self, current: str) -> tuple[Any, ...]:
        """When a grid is at rest, however that came: the buttons and the list of grids."""
        running = bool(current and runner.job_of(self.studio.worker, current))
        return (
            *showing(running=running),
            "" if not running else gr.skip(),
            gr.update(visible=grid_job.can_go_on(self.studio, current)),
            gr.update(visible=bool(current) and not running),
            gr.update(choices=self._earlier(), value=current or None),
        )

    def arrive(self, current: str) -> tuple[Any, ...]:
        """For a page that opens: as `settle`, but without a grid the buttons are left alone.

        Somebody may have pressed Compare since.
        """
        settled = self.settle(current)
        return settled if current else (*[gr.skip()] * (len(settled) - 1), settled[-1])

    def choices(self) -> tuple[Any, ...]:
        """The adapters to choose from, as they are now: A, B and both axes; and the trash."""
        names = gr.update(choices=[("No adapter", ""), *adapter_choices(self.studio.library)])
        all_names = gr.update(choices=axis_choices(self.studio.library))
        return names, names, all_names, all_names, binned(self.studio.grids.trash)

    def add_words(self, prompt: str, a: str | None, b: str | None) -> str:
        """The prompt with the trigger words of both adapters."""
        known = {entry.name: entry.info.trigger_words for entry in self.studio.library.usable}
        for name in (a, b):
            for word in known.get(name or "", ()):
                prompt = with_word(prompt, word)
        return prompt

    def _plan(self, form: Form, *, draft: bool = False) -> Plan:
        width, height = read_size(self.studio.engine.base, form.size)
        recipe = Recipe(
            # An empty prompt is told when the button is pressed, not while people are typing.
            prompt=form.prompt or ("…" if draft else ""),
            steps=int(form.steps or 0),
            guidance=form.guidance,
            seed=choose_seed(form.seed, fresh=form.fresh_seed and not draft),
            width=width,
            height=height,
        )
        library = self.studio.library
        if form.layout == CROSSED:
            adapters = {"A": form.a or "", "B": form.b or ""}
            start = Draft(recipe, adapters, {"A": form.strength_a, "B": form.strength_b})
            rows = read_axis(form.rows, form.rows_text, form.rows_names)
            columns = read_axis(form.columns, form.columns_text, form.columns_names)
            return axes.plan(library, start, rows, columns)
        pair = _choice("A", form.a, form.strength_a), _choice("B", form.b, form.strength_b)
        return compare.plan(library, recipe, *pair, seeds=int(form.seeds or 1))

    def _remarks(self, plan: Plan) -> list[str]:
        """What to know of the prompts, each remark once; with every adapter of the grid on."""
        names = {name: 1.0 for spot in plan.spots for name in spot.recipe.mix}
        prompts = {spot.recipe.prompt: spot.recipe for spot in plan.spots}
        found = (
            words
            for recipe in prompts.values()
            for words in self.studio.engine.remarks(replace(recipe, mix=names))
        )
        return list(dict.fromkeys(found))[:3]

    def _earlier(self) -> list[tuple[str, str]]:
        """Every grid, trials of Blend too: here they can be found and deleted."""
        found = self.studio.grids.recent((*OWN, trial.KIND), EARLIER)
        return [(_listed(name, grid), name) for name, grid in found]


def empty() -> str:
    """What stands in the place of the grid before there is one."""
    return gridview.empty(
        "One seed, many pictures",
        "Choose two adapters and press Compare. Every picture is saved as soon as it is there, "
        "and what was stopped can be continued.",
    )


def _choice(place: str, name: str | None, strength: float) -> Choice:
    if not name:
        raise SettingError(f"Choose an adapter for {place}.")
    return Choice(name, strength)


def _listed(name: str, grid: Grid) -> str:
    made = sum(cell.picture is not None for cell in grid.cells)
    state = f"{made} pictures" if grid.whole else f"{made} of {len(grid.cells)} so far"
    return f"{made_words(name)} · {grid.plan.title} · {state}"
