"""What the buttons of Blend do."""

import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr

from shira_diffusion.errors import SettingError, ShiraError
from studio.blends import trial
from studio.blends.blend import MAX_PARTS, Blend, Meeting, Thinning, blended, load_parts
from studio.blends.heatmap import heat_map
from studio.blends.interference import Pair, measured
from studio.grids import runner
from studio.grids.grid import Grid
from studio.newwords import unloaded
from studio.recipe import Recipe
from studio.service import Studio
from studio.tabs import blendview, grid_job, gridview
from studio.tabs.controls import choose_seed, read_size, showing, with_word
from studio.tabs.telling import remark, told

TOLD_EVERY = 0.2
"""Seconds between two words on the progress."""
BESIDE = {"Plain sum": 1, "Base": 0}
"""What the blend can be seen beside, and its column in the trial."""


class Form(NamedTuple):
    """What makes a blend; the strengths stand in the order of the names."""

    names: Any
    strengths: tuple[Any, ...]
    meeting: Any
    thinning: Any
    keep: Any
    result_keep: Any
    seed: Any

    @classmethod
    def read(cls, names: Any, *rest: Any) -> "Form":
        """From the flat values that a handler gets."""
        return cls(names, rest[:MAX_PARTS], *rest[MAX_PARTS:])

    @property
    def flat(self) -> list[Any]:
        """All of it in a row, for `read`."""
        return [self.names, *self.strengths, *self[2:]]

    @property
    def parts(self) -> dict[str, float]:
        """The chosen adapters with their strengths."""
        return dict(zip(self.names or [], self.strengths, strict=False))


class Made(NamedTuple):
    """What the page shows of a blend; `draft` is its name, `pairs` what was measured."""

    progress: Any
    outcome: Any
    report: Any
    pair: Any
    heat: Any
    draft: Any
    pairs: Any
    parts: Any


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
class BlendHandlers:
    """What the buttons of the tab do."""

    studio: Studio

    def place(self, names: list[str] | None, order: list[str], *strengths: float) -> list[Any]:
        """Sliders for the chosen adapters, each with the strength that it had; then their order."""
        chosen = (names or [])[:MAX_PARTS]
        before = dict(zip(order, strengths, strict=False))
        titles = self._titles()
        sliders = [
            gr.update(visible=True, label=titles.get(name, name), value=before.get(name, 1.0))
            for name in chosen
        ]
        return [*sliders, *[gr.update(visible=False)] * (MAX_PARTS - len(chosen)), chosen]

    def blend(self, measure: str, *values: Any) -> Iterator[Made]:
        """Measure the parts, fuse them, keep the result as a draft."""
        form = Form.read(*values)
        try:
            yield _still(blendview.busy(None))
            blend = self._read(form)
            adapters = load_parts(self.studio.library, blend)
            made = blended(blend, adapters, name="blend")
            pairs: list[Pair] = []
            seen = time.monotonic()
            for item in measured(adapters):
                if isinstance(item, Pair):
                    pairs.append(item)
                elif time.monotonic() - seen > TOLD_EVERY:
                    seen = time.monotonic()
                    yield _still(blendview.busy(item))
            draft = self.studio.drafts.keep(made)
            for lost in unloaded(self.studio.library, blend.parts):
                remark(f"{lost} The blend is without it.")
        except ShiraError as error:
            raise told(error) from error
        titles = self._titles()
        words = [(blendview.pair_words(pair, titles), index) for index, pair in enumerate(pairs)]
        yield Made(
            progress="",
            outcome=blendview.outcome(made, blend.words, draft.entry.stamp.size, adapters),
            report=blendview.report(pairs, titles),
            pair=gr.update(choices=words, value=0, visible=len(pairs) > 1),
            heat=blendview.heat_map(heat_map(pairs[0].meetings, measure), measure),
            draft=draft.name,
            pairs=tuple(pairs),
            parts=dict(blend.parts),
        )

    def heat(self, pairs: Sequence[Pair], index: int | None, measure: str) -> str:
        """The map of another pair or measure."""
        if not pairs:
            return ""
        return blendview.heat_map(heat_map(pairs[index or 0].meetings, measure), measure)

    def add_words(self, prompt: str, names: list[str] | None) -> str:
        """The prompt with the trigger words of the chosen adapters."""
        for word in self._triggers(names or []):
            prompt = with_word(prompt, word)
        return prompt

    def offer(self, names: list[str] | None) -> tuple[Any, ...]:
        """What to do with a blend that is made: shown, with a title and trigger words to keep."""
        titles = self._titles()
        title = " + ".join(titles.get(name, name) for name in names or [])
        words = ", ".join(self._triggers(names or []))
        shown = gr.update(visible=True)
        return shown, shown, gr.update(value=title), gr.update(value=words)

    async def attempt(
        self, draft: str, parts: dict[str, float], beside: str, *values: Any
    ) -> AsyncIterator[tuple[Any, ...]]:
        """Draw base, plain sum and blend; the outputs are `Shown`, the slider and the seed."""
        form = Try(*values)
        try:
            if not draft:
                raise SettingError("There is no blend yet: press Blend first.")
            self.studio.drafts.find(draft)
            width, height = read_size(self.studio.engine.base, form.size)
            recipe = Recipe(
                prompt=form.prompt or "",
                steps=int(form.steps or 0),
                guidance=form.guidance,
                seed=choose_seed(form.seed, fresh=form.fresh_seed),
                width=width,
                height=height,
            )
            for words in self.studio.engine.remarks(replace(recipe, mix=parts)):
                remark(words)
            plan = trial.plan(self.studio.library, recipe, parts, draft, seeds=int(form.seeds or 1))
            name = self.studio.grids.begin(plan, self.studio.library)
            runner.submit(self.studio.worker, name)
            async for shown, grid in grid_job.watched(self.studio, name):
                yield *shown, _slider(grid, beside), recipe.seed
        except ShiraError as error:
            raise told(error) from error

    def beside(self, current: str, beside: str) -> Any:
        """The slider with the blend beside something else."""
        return _slider(self.studio.grids.open(current), beside) if current else gr.skip()

    def arm(self) -> tuple[Any, ...]:
        """At the press of Try: say that it goes on."""
        return *showing(running=True), gridview.progress(None, None)

    def settle(self, current: str) -> tuple[Any, ...]:
        """When a trial is at rest."""
        running = bool(current and runner.job_of(self.studio.worker, current))
        return *showing(running=running), gr.skip() if running else ""

    def stop(self, current: str) -> None:
        """Stop the trial on the page."""
        grid_job.stop(self.studio, current)

    def keep(self, draft: str, current: str, title: str, triggers: str) -> tuple[Any, str]:
        """Put the blend into the library; the trial's first picture becomes its thumbnail."""
        try:
            if not draft:
                raise SettingError("There is no blend yet: press Blend first.")
            found = self.studio.drafts.find(draft)
            name = self.studio.drafts.publish(found, title, triggers, self._picture(current, draft))
        except ShiraError as error:
            raise told(error) from error
        except OSError as error:
            words = f"The blend cannot be written into the library: {error.strerror}."
            raise told(SettingError(words)) from error
        entry = self.studio.library.find(name)
        return gr.update(choices=self.choices()), blendview.kept(entry.title, name)

    def refresh(self) -> Any:
        """The adapters to choose from, as they are on disk now."""
        return gr.update(choices=self.choices())

    def choices(self) -> list[tuple[str, str]]:
        """Every adapter that works."""
        return [(entry.title, entry.name) for entry in self.studio.library.usable]

    def title(self, name: str) -> str:
        """What people call an adapter."""
        return self._titles().get(name, name)

    def _read(self, form: Form) -> Blend:
        return Blend(
            form.parts,
            Meeting(form.meeting),
            Thinning(form.thinning),
            keep=(form.keep or 0) / 100,
            result_keep=(form.result_keep or 0) / 100,
            seed=int(form.seed or 0),
        )

    def _picture(self, current: str, draft: str) -> Path | None:
        """The first picture of the blend in the trial on the page, if it is of this draft."""
        cells = self.studio.grids.open(current).cells if current else ()
        found = (cell.picture for cell in cells if draft in cell.mix and cell.picture)
        return next(found, None)

    def _titles(self) -> dict[str, str]:
        return {entry.name: entry.title for entry in self.studio.library.usable}

    def _triggers(self, names: Sequence[str]) -> list[str]:
        known = {entry.name: entry.info.trigger_words for entry in self.studio.library.usable}
        return list(dict.fromkeys(word for name in names for word in known.get(name, ())))


def _still(progress: str) -> Made:
    """The page as it is, but for the progress."""
    return Made(progress, *[gr.skip()] * (len(Made._fields) - 1))


def _slider(grid: Grid, beside: str) -> Any:
    """The first row's two pictures, once both are there."""
    left, right = grid.cells[BESIDE[beside]].picture, grid.cells[2].picture
    if left is None or right is None:
        return gr.skip()
    return gr.update(value=(str(left), str(right)), label=f"{beside} (left), blend (right)")
