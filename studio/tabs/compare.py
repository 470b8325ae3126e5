"""Compare: SHiRA beside LoRA, filling in picture by picture."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import gradio as gr

from shira_diffusion.errors import SettingError, ShiraError
from studio import compare
from studio.compare import Choice, Grid
from studio.errors import StoppedError
from studio.library import LORA, TWIN_ENDING, AdapterLibrary
from studio.recipe import MAX_STRENGTH, MIN_STRENGTH, Recipe
from studio.service import Studio
from studio.tabs import fragments
from studio.tabs.controls import (
    PAGE,
    Listener,
    RunButtons,
    choose_seed,
    connect_job,
    knobs,
    read_size,
    run_buttons,
    showing,
    with_word,
)
from studio.tabs.telling import remark, told
from studio.watching import Finished, watch

EXPLANATION = (
    "The same prompt, seed and noise in every picture. LoRA twins are written into the weights "
    "by the same exact switch as SHiRA, and the base comes back bit for bit after each."
)


class Form(NamedTuple):
    """What the person sets, in the order that `CompareHandlers.make` takes it."""

    prompt: Any
    a: Any
    strength_a: Any
    b: Any
    strength_b: Any
    steps: Any
    guidance: Any
    size: Any
    seed: Any
    fresh_seed: Any


@dataclass(frozen=True)
class CompareHandlers:
    """What the buttons of the tab do."""

    studio: Studio

    def arm(self, request: gr.Request) -> tuple[Any, ...]:
        """At the press of Compare, before the queue: ready the stop flag."""
        self.studio.stops.arm(_owner(request))
        return *showing(running=True), fragments.progress(None)

    def stop(self, request: gr.Request) -> None:
        """Ask the running or waiting comparison of this page to stop."""
        self.studio.stops.raise_flag(_owner(request))

    def make(
        self,
        prompt: str,
        a: str | None,
        strength_a: float,
        b: str | None,
        strength_b: float,
        steps: float,
        guidance: float,
        size: str | None,
        seed: float | None,
        fresh_seed: bool,
        request: gr.Request,
    ) -> Iterator[tuple[Any, ...]]:
        """Fill the grid; the outputs are the grid and the seed."""
        grid: Grid | None = None
        try:
            width, height = read_size(self.studio.engine.base, size)
            recipe = Recipe(
                prompt=prompt or "",
                steps=int(steps or 0),
                guidance=guidance,
                seed=choose_seed(seed, fresh=fresh_seed),
                width=width,
                height=height,
            )
            choices = _choice("A", a, strength_a), _choice("B", b, strength_b)
            grid = compare.plan(self.studio.library, recipe, *choices)
            both = {choice.name: choice.strength for choice in choices}
            for words in self.studio.engine.remarks(replace(recipe, mix=both)):
                remark(words)
            for item in watch(partial(self._work, grid, _owner(request))):
                grid = item.result if isinstance(item, Finished) else item
                yield self._drawn(grid), recipe.seed
        except StoppedError as stopped:
            remark(str(stopped))
            if grid is not None:
                yield self._drawn(compare.halted(grid)), grid.recipe.seed
        except ShiraError as error:
            yield fragments.grid_empty(), gr.skip()
            raise told(error) from error
        finally:
            self.studio.stops.forget(_owner(request))

    def settle(self) -> tuple[Any, ...]:
        """After a comparison, however it ended: the buttons as before."""
        return showing(running=False)

    def choices(self) -> tuple[Any, Any]:
        """The adapters to choose from, as they are on disk now."""
        names = gr.update(choices=adapter_choices(self.studio.library))
        return names, names

    def add_words(self, prompt: str, a: str | None, b: str | None) -> str:
        """The prompt with the trigger words of both adapters."""
        known = {entry.name: entry.info.trigger_words for entry in self.studio.library.usable}
        for name in (a, b):
            for word in known.get(name or "", ()):
                prompt = with_word(prompt, word)
        return prompt

    def _work(self, grid: Grid, owner: str, report: Callable[[Grid], None]) -> Grid:
        flag = self.studio.stops.flag(owner)
        folder = self.studio.comparisons
        return compare.run(self.studio.engine, grid, folder, report=report, stop=flag)

    def _drawn(self, grid: Grid) -> str:
        return fragments.grid(grid, crisp=self.studio.engine.base.is_small)


def adapter_choices(library: AdapterLibrary) -> list[tuple[str, str]]:
    """Title and name of every adapter that can be compared, those with a LoRA twin first."""
    usable = {entry.name for entry in library.usable}
    alone = [entry for entry in library.usable if entry.info.method != LORA]
    alone.sort(key=lambda entry: entry.name + TWIN_ENDING not in usable)
    return [(entry.title, entry.name) for entry in alone]


def proposed_pair(library: AdapterLibrary) -> tuple[str | None, str | None]:
    """Names for A and B to begin with: a style and a concept where there are both.

    A style is told by the word "style" in its trigger words; having a LoRA twin counts for more.
    """
    names = [name for _, name in adapter_choices(library)]
    entries = {entry.name: entry for entry in library.usable}

    def is_style(name: str) -> bool:
        return any(re.search(r"\bstyle\b", word) for word in entries[name].info.trigger_words)

    def drawbacks(name: str) -> tuple[bool, bool]:
        return name + TWIN_ENDING not in entries, is_style(name) == is_style(names[0])

    return next(iter(names), None), min(names[1:], key=drawbacks, default=None)


def _choice(place: str, name: str | None, strength: float) -> Choice:
    if not name:
        raise SettingError(f"Choose an adapter for {place}.")
    return Choice(name, strength)


def _owner(request: gr.Request) -> str:
    return f"compare {request.session_hash}"


def build(studio: Studio, tab: gr.Tab) -> None:
    """Lay out the tab and connect it; its pickers are brought up to date when it is opened."""
    handlers = CompareHandlers(studio)
    names = adapter_choices(studio.library)
    with gr.Row(elem_classes="ask"):
        with gr.Column(scale=5, min_width=280):
            prompt = gr.Textbox(
                label="Prompt", lines=2, max_lines=6, elem_id="compare-prompt",
                placeholder="What should all eight pictures show?",
            )  # fmt: skip
        with gr.Column(scale=1, min_width=150):
            buttons = run_buttons("Compare", "compare")
    first, second = proposed_pair(studio.library)
    with gr.Row():
        a = _side("A", names, first)
        b = _side("B", names, second)
    with gr.Row(elem_classes="after"):
        words = gr.Button("Add their trigger words to the prompt", size="sm")
    words.click(handlers.add_words, [prompt, a[0], b[0]], prompt, **PAGE)
    with gr.Accordion("Settings", open=False):
        numbers = knobs(studio.engine.base, fresh=False)
    result = gr.HTML(fragments.grid_empty(), elem_id="grid", apply_default_css=False)
    gr.HTML(f'<p class="help">{EXPLANATION}</p>')
    tab.select(handlers.choices, outputs=[a[0], b[0]], **PAGE)
    _connect(handlers, Form(prompt, *a, *b, *numbers), buttons, result)


def _side(place: str, names: list[tuple[str, str]], chosen: str | None) -> tuple[Any, Any]:
    with gr.Column(min_width=240), gr.Group():
        name = gr.Dropdown(
            names,
            value=chosen,
            label=f"Adapter {place}",
            elem_id=f"compare-{place.lower()}",
        )
        strength = gr.Slider(
            MIN_STRENGTH, MAX_STRENGTH, 1, step=0.05, label=f"Strength of {place}",
            info="1 is as trained.", buttons=[],
        )  # fmt: skip
    return name, strength


def _connect(
    handlers: CompareHandlers,
    form: Form,
    buttons: RunButtons,
    result: gr.HTML,
) -> None:
    connect_job(
        buttons,
        form.prompt,
        arm=Listener(handlers.arm, [], [*buttons, result]),
        make=Listener(handlers.make, [*form], [result, form.seed]),
        settle=Listener(handlers.settle, [], [*buttons]),
    )
    buttons.stop.click(handlers.stop, **PAGE)
