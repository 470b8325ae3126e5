"""Generate: words and a mix of adapters in, a picture out."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import gradio as gr

from shira_diffusion.errors import ShiraError
from studio.base import Base
from studio.engine import Sample
from studio.errors import PictureError, StoppedError
from studio.infotext import to_infotext
from studio.recipe import Recipe
from studio.service import Studio
from studio.steps import Step
from studio.tabs import fragments
from studio.tabs.cards import adapter_cards, recent_pictures
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
    size_name,
    with_word,
)
from studio.tabs.parts import adapter_rack, picture_stage, picture_strip
from studio.tabs.telling import remark, told
from studio.watching import Finished, watch


class Shown(NamedTuple):
    """Everything on the page that belongs to the picture on the stage; `current` is its id."""

    stage: Any
    current: Any
    details: Any
    settings: Any
    infotext: Any


class Form(NamedTuple):
    """What the person sets, in the order that `GenerateHandlers.make` takes it."""

    prompt: Any
    negative_prompt: Any
    mix: Any
    steps: Any
    guidance: Any
    size: Any
    seed: Any
    fresh_seed: Any


@dataclass(frozen=True)
class GenerateHandlers:
    """What the buttons of the tab do."""

    studio: Studio

    def arm(self, current: str, request: gr.Request) -> tuple[Any, ...]:
        """At the press of Generate, before the queue: ready the stop flag, say that it goes on."""
        self.studio.stops.arm(_owner(request))
        return *showing(running=True), self._busy(None, current)

    def stop(self, request: gr.Request) -> None:
        """Ask the running or waiting job of this page to stop."""
        self.studio.stops.raise_flag(_owner(request))

    def make(
        self,
        prompt: str,
        negative_prompt: str,
        mix: dict[str, float],
        steps: float,
        guidance: float,
        size: str | None,
        seed: float | None,
        fresh_seed: bool,
        current: str,
        request: gr.Request,
    ) -> Iterator[tuple[Any, ...]]:
        """Make a picture, yielding progress; the outputs are `Shown`, the seed and the strip."""
        try:
            width, height = read_size(self.studio.engine.base, size)
            recipe = Recipe(
                prompt=prompt or "",
                negative_prompt=negative_prompt or "",
                steps=int(steps or 0),
                guidance=guidance,
                seed=choose_seed(seed, fresh=fresh_seed),
                width=width,
                height=height,
                mix=mix,
            )
            for item in watch(partial(self._work, recipe, _owner(request))):
                if isinstance(item, Finished):
                    name, sample = item.result
                    for words in sample.remarks:
                        remark(words)
                    strip = recent_pictures(self.studio.pictures)
                    yield *self._shown(name), recipe.seed, strip
                else:
                    same = [gr.skip()] * (len(Shown._fields) + 1)
                    yield self._busy(item, current), *same
        except StoppedError as stopped:
            remark(str(stopped))
        except ShiraError as error:
            raise told(error) from error
        finally:
            self.studio.stops.forget(_owner(request))

    def settle(self, current: str) -> tuple[Any, ...]:
        """After a job, however it ended: the buttons as before, the last picture on the stage."""
        try:
            stage = self._shown(current).stage if current else fragments.stage_empty()
        except PictureError:
            stage = fragments.stage_empty()
        return *showing(running=False), stage

    def pick(self, event: gr.EventData) -> Shown:
        """Show a picture of the strip again."""
        try:
            return self._shown(str(event.name))
        except ShiraError as error:
            raise told(error) from error

    def reuse(self, current: str) -> Form:
        """Set the form to what made the picture on the stage; adapters that are gone are named."""
        try:
            recipe = self.studio.pictures.record(current).recipe
        except ShiraError as error:
            raise told(error) from error
        base, size = self.studio.engine.base, (recipe.width, recipe.height)
        if size not in base.sizes:
            remark(f"{base.name} makes no {size_name(size)} px; its own size is set instead.")
            size = base.native
        known = {entry.name for entry in self.studio.library.usable}
        gone = [name for name in recipe.mix if name not in known]
        if gone:
            remark(f"Not in the library any more, and left out: {', '.join(gone)}.")
        return Form(
            recipe.prompt,
            recipe.negative_prompt,
            {name: strength for name, strength in recipe.mix.items() if name in known},
            recipe.steps,
            recipe.guidance,
            size_name(size),
            recipe.seed,
            False,
        )

    def open_page(self) -> tuple[Any, Any]:
        """For a page that opens: the adapters and pictures as they are on disk now."""
        return self.rescan(), recent_pictures(self.studio.pictures)

    def rescan(self) -> Any:
        """Look at the adapters folder again."""
        self.studio.library.rescan()
        return gr.update(cards=adapter_cards(self.studio.library))

    def _work(
        self, recipe: Recipe, owner: str, report: Callable[[Step], None]
    ) -> tuple[str, Sample]:
        flag = self.studio.stops.flag(owner)
        sample = self.studio.engine.generate(recipe, on_step=report, stop=flag)
        return self.studio.pictures.save(sample.image, sample.record), sample

    def _busy(self, step: Step | None, current: str) -> str:
        previous = self.studio.pictures.folder / f"{current}.png" if current else None
        return fragments.stage_busy(step, previous, crisp=self.studio.engine.base.is_small)

    def _shown(self, name: str) -> Shown:
        path = self.studio.pictures.path(name)
        record = self.studio.pictures.record(name)
        return Shown(
            stage=fragments.stage_done(path, record, crisp=self.studio.engine.base.is_small),
            current=name,
            details=gr.update(visible=True),
            settings=fragments.settings(record),
            infotext=to_infotext(record),
        )


def add_words(prompt: str, event: gr.EventData) -> str:
    """The prompt with the trigger word that was clicked."""
    return with_word(prompt, str(event.word))


def _owner(request: gr.Request) -> str:
    return f"generate {request.session_hash}"


def build(studio: Studio, page: gr.Blocks) -> None:
    """Lay out the tab and connect it."""
    handlers = GenerateHandlers(studio)
    with gr.Row(elem_classes="ask"):
        with gr.Column(scale=5, min_width=280):
            prompt = gr.Textbox(
                label="Prompt", lines=2, max_lines=6, elem_id="prompt",
                placeholder="What should the picture show?",
            )  # fmt: skip
        with gr.Column(scale=1, min_width=150):
            buttons = run_buttons("Generate", "generate")
    _examples(studio.engine.base.examples, prompt)
    _known_words(studio.engine.base)
    with gr.Row(elem_classes="bench"):
        with gr.Column(scale=6, min_width=280, elem_classes="tools"):
            rack = adapter_rack(adapter_cards(studio.library), studio.library.folder.name)
            with gr.Accordion("Settings", open=False):
                negative = gr.Textbox(
                    label="Negative prompt", lines=1, max_lines=4,
                    placeholder="What should not be there",
                )  # fmt: skip
                numbers = knobs(studio.engine.base, fresh=True)
        with gr.Column(scale=5, min_width=280, elem_classes="result"):
            shown = _stage()
    gr.HTML('<h2 class="section">Recent pictures</h2>')
    strip = picture_strip(recent_pictures(studio.pictures))
    form = Form(prompt, negative, rack, *numbers)
    _connect(handlers, page, form, shown, buttons, strip)


def _examples(prompts: tuple[str, ...], target: gr.Textbox) -> None:
    with gr.Row(elem_classes="examples"):
        for words in prompts:
            button = gr.Button(words, size="sm", variant="secondary", min_width=0)
            button.click(partial(str, words), outputs=target, **PAGE)


def _known_words(base: Base) -> None:
    if base.vocabulary:
        with gr.Accordion(f"What {base.name} knows", open=False):
            gr.HTML(fragments.known_words(base.vocabulary), apply_default_css=False)


def _stage() -> Shown:
    stage = picture_stage(fragments.stage_empty())
    with gr.Accordion("How it was made", open=False, visible=False) as details:
        settings = gr.HTML(apply_default_css=False)
        infotext = gr.Textbox(
            label="As text", lines=3, max_lines=8, interactive=False, buttons=["copy"],
            info="Also inside the PNG, where other apps read it.",
        )  # fmt: skip
    return Shown(stage, gr.State(""), details, settings, infotext)


def _connect(
    handlers: GenerateHandlers,
    page: gr.Blocks,
    form: Form,
    shown: Shown,
    buttons: RunButtons,
    strip: gr.HTML,
) -> None:
    rack = form.mix
    connect_job(
        buttons,
        form.prompt,
        arm=Listener(handlers.arm, [shown.current], [*buttons, shown.stage]),
        make=Listener(handlers.make, [*form, shown.current], [*shown, form.seed, strip]),
        settle=Listener(handlers.settle, [shown.current], [*buttons, shown.stage]),
    )
    buttons.stop.click(handlers.stop, **PAGE)
    strip.pick(handlers.pick, outputs=[*shown], **PAGE)
    shown.stage.reuse(handlers.reuse, shown.current, [*form], **PAGE)
    rack.insert(add_words, form.prompt, form.prompt, **PAGE)
    rack.rescan(handlers.rescan, outputs=rack, **PAGE)
    page.load(handlers.open_page, outputs=[rack, strip], **PAGE)
