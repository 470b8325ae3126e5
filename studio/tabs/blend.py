"""Blend: one adapter out of several, with what they do to each other, tried and then kept."""

from typing import Any

import gradio as gr

from studio.blends.blend import MAX_PARTS, Meeting, Thinning
from studio.blends.heatmap import MEASURES
from studio.recipe import MAX_SEED, MAX_STRENGTH, MIN_STRENGTH
from studio.service import Studio
from studio.tabs import blendview, gridview
from studio.tabs.blending import BESIDE, BlendHandlers, Form, Made, Try
from studio.tabs.controls import FOLLOW, PAGE, knobs, run_buttons
from studio.tabs.grid_job import Shown
from studio.tabs.pairs import proposed_pair

_MEETINGS = [
    ("Sum", Meeting.SUM),
    ("Mean", Meeting.MEAN),
    ("Strongest", Meeting.STRONGEST),
    ("TIES", Meeting.TIES),
]
_THINNINGS = [
    ("Keep all", Thinning.NONE),
    ("Keep the largest", Thinning.LARGEST),
    ("DARE: drop at random", Thinning.DARE),
]
_FUSE = {**FOLLOW, "concurrency_id": "blend", "concurrency_limit": 1}


def build(studio: Studio, tab: gr.Tab) -> None:
    """Lay out the tab and connect it; its list of adapters is brought up to date when opened."""
    handlers = BlendHandlers(studio)
    with gr.Row(elem_classes="bench"):
        with gr.Column(scale=5, min_width=280):
            form = _form(handlers)
            start = gr.Button("Blend", variant="primary", size="lg", elem_id="blend-start")
        with gr.Column(scale=7, min_width=280):
            made, measure = _made()
    with gr.Column(visible=False) as after:
        gr.HTML('<h2 class="section">Try it</h2>', apply_default_css=False)
        shown = _trial(handlers, made, form)
        gr.HTML('<h2 class="section">Keep it</h2>', apply_default_css=False)
        title, triggers = _keep(handlers, made, shown, form)
    job = start.click(handlers.blend, [measure, *form.flat], [*made], **_FUSE)
    job.then(handlers.offer, form.names, [after, measure, title, triggers], **PAGE)
    looks = [made.pairs, made.pair, measure]
    gr.on([made.pair.input, measure.input], handlers.heat, looks, made.heat, **PAGE)
    job.failure(str, outputs=made.progress, **PAGE)
    tab.select(handlers.refresh, outputs=form.names, **PAGE)


def _form(handlers: BlendHandlers) -> Form:
    first = [name for name in proposed_pair(handlers.studio.library) if name]
    with gr.Group():
        names = gr.Dropdown(
            handlers.choices(), value=first, multiselect=True, max_choices=MAX_PARTS,
            label="Adapters", elem_id="blend-adapters",
            info=f"Two to {MAX_PARTS}; a LoRA changes every entry of its weights, and so does "
            "its blend.",
        )  # fmt: skip
        strengths = tuple(_strength(handlers, first, number) for number in range(MAX_PARTS))
    order = gr.State(first)
    names.change(
        handlers.place, [names, order, *strengths], [*strengths, order],
        trigger_mode="always_last", **PAGE,
    )  # fmt: skip
    meeting = gr.Radio(
        _MEETINGS, value=Meeting.SUM, label="Where they meet", elem_id="blend-meeting",
        info="What an entry gets that several change. Sum adds, Mean averages, Strongest takes the "
        "largest change, TIES averages those with the winning sign.",
    )  # fmt: skip
    thinning = gr.Radio(
        _THINNINGS, value=Thinning.NONE, label="Thin each one first", elem_id="blend-thinning",
        info="Fewer entries meet less. TIES as published keeps the largest 20 %; DARE drops most "
        "at random and scales up the rest.",
    )  # fmt: skip
    keep = gr.Slider(
        1, 100, 50, step=1, label="Keep of each (%)", visible=False, buttons=[],
        elem_id="blend-keep",
    )  # fmt: skip
    thinning.change(
        lambda chosen: gr.update(visible=chosen != Thinning.NONE), thinning, keep, **PAGE
    )
    with gr.Accordion("More", open=False):
        result_keep = gr.Slider(
            1, 100, 100, step=1, label="Keep of the result (%)", buttons=[],
            info="Prunes the blend to its largest entries, for a smaller file.",
        )  # fmt: skip
        seed = gr.Number(
            0, label="Seed of DARE", precision=0, minimum=0, maximum=MAX_SEED,
            info="Another seed drops other entries.",
        )  # fmt: skip
    return Form(names, strengths, meeting, thinning, keep, result_keep, seed)


def _strength(handlers: BlendHandlers, chosen: list[str], number: int) -> gr.Slider:
    """The slider of the adapter that is chosen in this place, hidden where none is."""
    label = handlers.title(chosen[number]) if number < len(chosen) else "Strength"
    return gr.Slider(
        MIN_STRENGTH, MAX_STRENGTH, 1, step=0.05, label=label, visible=number < len(chosen),
        buttons=[], elem_id=f"blend-strength-{number + 1}",
    )  # fmt: skip


def _made() -> tuple[Made, gr.Radio]:
    progress = gr.HTML(apply_default_css=False, elem_id="blend-progress")
    outcome = gr.HTML(apply_default_css=False, elem_id="blend-outcome")
    report = gr.HTML(blendview.empty(), apply_default_css=False, elem_id="blend-report")
    with gr.Row(elem_classes="after"):
        pair = gr.Dropdown([], label="Pair", visible=False, elem_id="blend-pair")
        measure = gr.Radio(
            [*MEASURES], value=next(iter(MEASURES)), label="Where in the network they meet",
            visible=False, elem_id="blend-measure",
        )  # fmt: skip
    heat = gr.HTML(apply_default_css=False, elem_id="blend-heat")
    made = Made(progress, outcome, report, pair, heat, gr.State(""), gr.State(()), gr.State({}))
    return made, measure


def _trial(handlers: BlendHandlers, made: Made, form: Form) -> Shown:
    base = handlers.studio.engine.base
    with gr.Row(elem_classes="ask"):
        with gr.Column(scale=5, min_width=280):
            prompt = gr.Textbox(
                label="Prompt", lines=2, max_lines=6, elem_id="blend-prompt",
                placeholder="What should the pictures show?",
            )  # fmt: skip
        with gr.Column(scale=1, min_width=150):
            buttons = run_buttons("Try it", "blend-try")
    with gr.Row(elem_classes="after"):
        words = gr.Button("Add their trigger words to the prompt", size="sm")
    with gr.Accordion("Settings", open=False):
        seeds = gr.Slider(1, 8, 1, step=1, label="Seeds", buttons=[], info="One row for each.")
        numbers = knobs(base, fresh=False)
    progress = gr.HTML(apply_default_css=False, elem_id="blend-try-progress")
    with gr.Row(elem_classes="bench"):
        with gr.Column(scale=5, min_width=280):
            slider = gr.ImageSlider(
                label="Before and after", interactive=False, elem_id="blend-slider", max_height=460,
                type="filepath", elem_classes="crisp-slider" if base.is_small else None,
                buttons=["fullscreen"],
            )  # fmt: skip
            beside = gr.Radio(
                [*BESIDE], value="Plain sum", label="Beside the blend", elem_id="blend-beside"
            )
        with gr.Column(scale=7, min_width=280):
            grid = gr.HTML(
                gridview.empty("Base, plain sum and blend", "The same words, seed and noise."),
                apply_default_css=False, elem_id="blend-grid",
            )  # fmt: skip
    shown = Shown(progress, grid, gr.State(""))
    words.click(handlers.add_words, [prompt, form.names], prompt, **PAGE)
    settings = Try(prompt, seeds, *numbers)
    armed = gr.on(
        [buttons.start.click, prompt.submit], handlers.arm, outputs=[*buttons, progress], **PAGE
    )
    job = armed.then(
        handlers.attempt, [made.draft, made.parts, beside, *settings],
        [*shown, slider, settings.seed], **FOLLOW,
    )  # fmt: skip
    # Gradio 6.31 calls `then` after a success only, against its documentation.
    for event in (job.then, job.failure):
        event(handlers.settle, shown.current, [*buttons, progress], **PAGE)
    buttons.stop.click(handlers.stop, shown.current, **PAGE)
    beside.input(handlers.beside, [shown.current, beside], slider, **PAGE)
    return shown


def _keep(
    handlers: BlendHandlers, made: Made, shown: Shown, form: Form
) -> tuple[gr.Textbox, gr.Textbox]:
    with gr.Row(elem_classes="ask"):
        title = gr.Textbox(label="Title", max_lines=1, elem_id="blend-title")
        triggers = gr.Textbox(
            label="Trigger words", max_lines=1, elem_id="blend-triggers",
            info="Between commas; all that the parts were trained with.",
        )  # fmt: skip
        with gr.Column(scale=1, min_width=150):
            button = gr.Button("Save to the library", variant="primary", elem_id="blend-save")
    note = gr.HTML(apply_default_css=False, elem_id="blend-kept")
    inputs: list[Any] = [made.draft, shown.current, title, triggers]
    button.click(handlers.keep, inputs, [form.names, note], **FOLLOW)
    return title, triggers
