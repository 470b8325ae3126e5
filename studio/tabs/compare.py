"""Compare: SHiRA beside LoRA, or a grid over any two settings, filling in picture by picture."""

from typing import Any, NamedTuple

import gradio as gr

from studio.grids.compare import MAX_SEEDS
from studio.library import AdapterLibrary
from studio.recipe import MAX_STRENGTH, MIN_STRENGTH
from studio.service import Studio
from studio.tabs import widgets
from studio.tabs.axis_fields import AxisFields, axis_fields
from studio.tabs.comparing import CROSSED, TWINS, CompareHandlers, Form, empty
from studio.tabs.controls import FOLLOW, PAGE, RunButtons, knobs, run_buttons
from studio.tabs.grid_job import Shown
from studio.tabs.pairs import adapter_choices, proposed_pair

EXPLANATION = (
    "Every picture starts from the same noise for the same seed; only what the headings say "
    "differs. LoRA twins are written into the weights by the same exact switch as SHiRA, and the "
    "base comes back bit for bit after each."
)


class Place(NamedTuple):
    """The parts of the page around a grid."""

    shown: Shown
    resume: gr.Button
    delete: gr.Button
    trash: gr.HTML
    earlier: gr.Dropdown


def build(studio: Studio, tab: gr.Tab) -> None:
    """Lay out the tab and connect it; its pickers are brought up to date when it is opened."""
    handlers = CompareHandlers(studio)
    with gr.Row(elem_classes="ask"):
        with gr.Column(scale=5, min_width=280):
            prompt = gr.Textbox(
                label="Prompt", lines=1, max_lines=6, elem_id="compare-prompt",
                placeholder="What should all the pictures show?",
            )  # fmt: skip
        with gr.Column(scale=1, min_width=150):
            buttons = run_buttons("Compare", "compare")
    names = [("No adapter", ""), *adapter_choices(studio.library)]
    first, second = proposed_pair(studio.library)
    with gr.Row():
        a, b = _side("A", names, first), _side("B", names, second)
    with gr.Row(elem_classes="after"):
        words = gr.Button("Add their trigger words to the prompt", size="sm")
    words.click(handlers.add_words, [prompt, a[0], b[0]], prompt, **PAGE)
    layout, seeds, rows, columns = _layout(studio.library)
    with gr.Accordion("Settings", open=False):
        numbers = knobs(studio.engine.base, fresh=False)
    form = Form(prompt, *a, *b, layout, seeds, *rows, *columns, *numbers)
    size = gr.HTML(handlers.size(*_values(form)), apply_default_css=False, elem_id="plan-size")
    place = _place()
    gr.HTML(f'<p class="help">{EXPLANATION}</p>')
    listed = [a[0], b[0], rows.names, columns.names, place.trash]
    tab.select(handlers.choices, outputs=listed, **PAGE)
    _connect(handlers, form, buttons, place, size, tab)
    gr.on(
        [part.change for part in form if part is not prompt],
        handlers.size, [*form], size, trigger_mode="always_last", **PAGE,
    )  # fmt: skip


def _values(form: Form) -> list[Any]:
    return [part.value for part in form]


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


def _layout(library: AdapterLibrary) -> tuple[gr.Radio, gr.Slider, AxisFields, AxisFields]:
    layout = gr.Radio(
        [TWINS, CROSSED], value=TWINS, label="What to draw", elem_id="compare-layout",
        info="The base, A, B and both, as SHiRA and as LoRA; or any two settings crossed.",
    )  # fmt: skip
    seeds = gr.Slider(
        1, MAX_SEEDS, 1, step=1, label="Seeds", buttons=[], elem_id="compare-seeds",
        info="One row for each: what holds for several seeds is no accident.",
    )  # fmt: skip
    with gr.Row(visible=False) as crossed:
        rows = axis_fields("rows", "Strength of A", library)
        columns = axis_fields("columns", "Strength of B", library)
    layout.change(
        lambda chosen: (gr.update(visible=chosen == TWINS), gr.update(visible=chosen == CROSSED)),
        layout, [seeds, crossed], **PAGE,
    )  # fmt: skip
    return layout, seeds, rows, columns


def _place() -> Place:
    progress = gr.HTML(apply_default_css=False, elem_id="compare-progress")
    grid = gr.HTML(empty(), elem_id="grid", apply_default_css=False)
    with gr.Row(elem_classes="after"):
        resume = gr.Button("Continue", visible=False, size="sm", elem_id="compare-resume")
        delete = gr.Button("Delete this grid", visible=False, size="sm", elem_id="compare-delete")
    earlier = gr.Dropdown(
        [], label="Earlier grids", elem_id="compare-earlier",
        info="They stay on disk; an unfinished one can be continued.",
    )  # fmt: skip
    trash = widgets.trash("compare")
    return Place(Shown(progress, grid, gr.State("")), resume, delete, trash, earlier)


def _connect(
    handlers: CompareHandlers,
    form: Form,
    buttons: RunButtons,
    place: Place,
    size: gr.HTML,
    tab: gr.Tab,
) -> None:
    current, progress = place.shown.current, place.shown.progress
    settled = [*buttons, progress, place.resume, place.delete, place.earlier]

    def begin(starts: list[Any], work: Any, inputs: list[Any], outputs: list[Any]) -> None:
        armed = gr.on(starts, handlers.arm, outputs=settled[:-1], **PAGE)
        ended(armed.then(work, inputs, outputs, **FOLLOW), handlers.settle)

    def ended(job: Any, handler: Any) -> None:
        # Gradio 6.31 calls `then` after a success only, against its documentation.
        for event in (job.then, job.failure):
            event(handler, current, settled, **PAGE)
        # The time that a grid takes is told by the newest picture.
        job.then(handlers.size, [*form], size, **PAGE)

    begin(
        [buttons.start.click, form.prompt.submit],
        handlers.start, [*form], [*place.shown, form.seed],
    )  # fmt: skip
    begin([place.resume.click], handlers.resume, [current], [*place.shown])
    chosen = place.earlier.input(handlers.pick, [place.earlier, current], current, **PAGE)
    opened = tab.select(handlers.running, current, current, **PAGE)
    restored = place.trash.restore(handlers.restore, outputs=[current, place.trash], **FOLLOW)
    place.trash.empty(handlers.empty_trash, outputs=place.trash, **PAGE)
    deleted = place.delete.click(handlers.delete, current, [*place.shown, place.trash], **FOLLOW)
    deleted.success(handlers.settle, current, settled, **PAGE)
    for arrival in (chosen, opened, restored):
        ready = arrival.then(handlers.arrive, current, settled, **PAGE)
        ended(ready.then(handlers.follow, current, [*place.shown], **FOLLOW), handlers.arrive)
    buttons.stop.click(handlers.stop, current, **PAGE)
