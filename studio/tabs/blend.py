"""Blend: one adapter out of several, with what they do to each other, tried and then kept."""

from typing import Any, NamedTuple

import gradio as gr

from studio.base import Base
from studio.blends.blend import MAX_PARTS, Meeting, Thinning
from studio.blends.heatmap import MEASURES
from studio.recipe import MAX_SEED, MAX_STRENGTH, MIN_STRENGTH
from studio.service import Studio
from studio.tabs import blendview
from studio.tabs.blending import BlendHandlers, Form, Made
from studio.tabs.controls import BROWSER_KEY, FOLLOW, PAGE, RunButtons, knobs, run_buttons
from studio.tabs.grid_job import Shown
from studio.tabs.pairs import proposed_pair
from studio.tabs.trying import BESIDE, TrialHandlers, Try, empty_trial

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


class Kept(NamedTuple):
    """What the browser remembers: the last blend's job, and the grid of its trial."""

    job: gr.BrowserState
    trial: gr.BrowserState


def kept_in_browser() -> Kept:
    """Lay out what the browser remembers; outside of tabs, which Gradio reads only when opened."""
    return Kept(
        gr.BrowserState("", storage_key="shira-studio-blend", secret=BROWSER_KEY),
        gr.BrowserState("", storage_key="shira-studio-trial", secret=BROWSER_KEY),
    )


def build(studio: Studio, page: gr.Blocks, tab: gr.Tab, kept: Kept) -> None:
    """Lay out the tab and connect it; its list of adapters is brought up to date when opened."""
    handlers, trials = BlendHandlers(studio), TrialHandlers(studio)
    with gr.Row(elem_classes="bench"):
        with gr.Column(scale=5, min_width=280):
            form, order = _form(handlers)
            buttons = run_buttons("Blend", "blend")
        with gr.Column(scale=7, min_width=280):
            report = _report()
    with gr.Column(visible=False) as after:
        gr.HTML('<h2 class="section">Try it</h2>', apply_default_css=False)
        trial = _trial(studio.engine.base, kept.trial)
        gr.HTML('<h2 class="section">Keep it</h2>', apply_default_css=False)
        title, triggers, save, note = _keep()
    made = Made(*report, gr.State(""), after, title, triggers)
    opened = _connect_blend(handlers, page, made, form, order, buttons, kept.job)
    _connect_trial(handlers, trials, opened, trial, made, form)
    inputs: list[Any] = [made.draft, trial.shown.current, title, triggers]
    save.click(handlers.keep, inputs, [form.names, note], **FOLLOW)
    tab.select(handlers.refresh, outputs=form.names, **PAGE)


def _form(handlers: BlendHandlers) -> tuple[Form, gr.State]:
    first = [name for name in proposed_pair(handlers.studio.library) if name]
    with gr.Group():
        names = gr.Dropdown(
            handlers.choices(), value=first, multiselect=True, max_choices=MAX_PARTS,
            label="Adapters", elem_id="blend-adapters",
            info=f"Two to {MAX_PARTS}. Blends of SHiRA adapters are small files; with a LoRA among "
            "them the blend changes every value of its weights, and its file is large.",
        )  # fmt: skip
        strengths = tuple(_strength(handlers, first, number) for number in range(MAX_PARTS))
    order = gr.State(first)
    names.input(
        handlers.place, [names, order, *strengths], [*strengths, order],
        trigger_mode="always_last", **PAGE,
    )  # fmt: skip
    meeting = gr.Radio(
        _MEETINGS, value=Meeting.SUM, label="Where they meet", elem_id="blend-meeting",
        info="What a value of the base gets that several adapters change. For most: Sum. It adds; "
        "Mean averages, Strongest takes the largest change, TIES averages those of the winning "
        "sign.",
    )  # fmt: skip
    thinning = gr.Radio(
        _THINNINGS, value=Thinning.NONE, label="Thin each one first", elem_id="blend-thinning",
        info="For most: Keep all. Adapters that change fewer values meet less. With TIES keep the "
        "largest 20 %, as its paper does; DARE drops most at random and scales up the rest.",
    )  # fmt: skip
    keep = gr.Slider(
        1, 100, 50, step=1, label="Keep of each (%)", visible=False, buttons=[],
        elem_id="blend-keep",
    )  # fmt: skip
    thinning.change(
        lambda chosen: gr.update(visible=chosen != Thinning.NONE), thinning, keep, **PAGE
    )
    return Form(names, strengths, meeting, thinning, keep, *_more()), order


def _more() -> tuple[gr.Slider, gr.Number]:
    with gr.Accordion("More", open=False):
        result_keep = gr.Slider(
            1, 100, 100, step=1, label="Keep of the result (%)", buttons=[],
            info="Keeps only the blend's largest changes, for a smaller file.",
        )  # fmt: skip
        seed = gr.Number(
            0, label="Seed of DARE", precision=0, minimum=0, maximum=MAX_SEED,
            info="Another seed drops other values.",
        )  # fmt: skip
    return result_keep, seed


def _strength(handlers: BlendHandlers, chosen: list[str], number: int) -> gr.Slider:
    """The slider of the adapter that is chosen in this place, hidden where none is."""
    label = handlers.title(chosen[number]) if number < len(chosen) else "Strength"
    return gr.Slider(
        MIN_STRENGTH, MAX_STRENGTH, 1, step=0.05, label=label, visible=number < len(chosen),
        buttons=[], elem_id=f"blend-strength-{number + 1}",
    )  # fmt: skip


def _report() -> tuple[Any, Any, Any, Any, Any, Any]:
    """What is said of a blend, in the order of `Made`."""
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
    return progress, outcome, report, pair, measure, heat


class Trial(NamedTuple):
    """The parts of the page around a trial."""

    settings: Try
    buttons: RunButtons
    words: gr.Button
    shown: Shown
    slider: gr.ImageSlider
    beside: gr.Radio


def _trial(base: Base, current: gr.BrowserState) -> Trial:
    with gr.Row(elem_classes="ask"):
        with gr.Column(scale=5, min_width=280):
            prompt = gr.Textbox(
                label="Prompt", lines=1, max_lines=6, elem_id="blend-prompt",
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
            grid = gr.HTML(empty_trial(), apply_default_css=False, elem_id="blend-grid")
    shown = Shown(progress, grid, current)
    return Trial(Try(prompt, seeds, *numbers), buttons, words, shown, slider, beside)


def _keep() -> tuple[gr.Textbox, gr.Textbox, gr.Button, gr.HTML]:
    with gr.Row(elem_classes="ask"):
        title = gr.Textbox(label="Title", max_lines=1, min_width=240, elem_id="blend-title")
        triggers = gr.Textbox(
            label="Trigger words", max_lines=1, min_width=240, elem_id="blend-triggers",
            info="Between commas; all that the parts were trained with.",
        )  # fmt: skip
        with gr.Column(scale=1, min_width=150):
            save = gr.Button("Save to the library", variant="primary", elem_id="blend-save")
    note = gr.HTML(apply_default_css=False, elem_id="blend-kept")
    return title, triggers, save, note


def _connect_blend(
    handlers: BlendHandlers,
    page: gr.Blocks,
    made: Made,
    form: Form,
    order: gr.State,
    buttons: RunButtons,
    job: gr.BrowserState,
) -> tuple[Any, Any]:
    """Connect what makes a blend; gives what follows a new one, and one of before a reload."""
    following = handlers.follow, [job, made.measure], [*made, *buttons]
    begun = buttons.start.click(handlers.begin, form.flat, [job, *buttons, made.progress], **FOLLOW)
    buttons.stop.click(handlers.stop, job, **PAGE)
    opened = page.load(handlers.open_page, job, [*form.flat, order], **PAGE)
    looks = [made.draft, made.pair, made.measure]
    gr.on([made.pair.input, made.measure.input], handlers.heat, looks, made.heat, **FOLLOW)
    return begun.success(*following, **FOLLOW), opened.success(*following, **FOLLOW)


def _connect_trial(
    handlers: BlendHandlers,
    trials: TrialHandlers,
    blends: tuple[Any, Any],
    trial: Trial,
    made: Made,
    form: Form,
) -> None:
    new, opened = blends
    shown, current = trial.shown, trial.shown.current
    following = trials.follow, [current, trial.beside], [*shown, trial.slider, *trial.buttons]
    belonging = trials.belong, [current, made.draft], [*shown, trial.slider]
    starts = [trial.buttons.start.click, trial.settings.prompt.submit]
    begun = gr.on(
        starts, trials.begin, [made.draft, *trial.settings],
        [current, trial.settings.seed, *trial.buttons, shown.progress], **FOLLOW,
    )  # fmt: skip
    begun.success(*following, **FOLLOW)
    trial.buttons.stop.click(trials.stop, current, **PAGE)
    trial.words.click(handlers.add_words, [trial.settings.prompt, form.names],
                      trial.settings.prompt, **PAGE)  # fmt: skip
    trial.beside.input(trials.beside, [current, trial.beside], trial.slider, **PAGE)
    new.success(*belonging, **PAGE)
    own = opened.success(*belonging, **PAGE)
    restored = own.success(trials.open_page, current, [*trial.settings], **PAGE)
    restored.success(*following, **FOLLOW)
