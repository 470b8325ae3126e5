"""Generate: words and a mix of adapters in, pictures out."""

from functools import partial

import gradio as gr

from studio.base import Base
from studio.making import MAX_COUNT
from studio.service import Studio
from studio.tabs import fragments, stage
from studio.tabs.cards import adapter_cards, recent_pictures
from studio.tabs.controls import BROWSER_KEY, FOLLOW, PAGE, RunButtons, knobs, run_buttons
from studio.tabs.generating import Form, GenerateHandlers, Shown, add_words
from studio.tabs.parts import adapter_rack, picture_stage, picture_strip


def build(studio: Studio, page: gr.Blocks, tab: gr.Tab) -> None:
    """Lay out the tab and connect it; its rack is brought up to date when opened."""
    handlers = GenerateHandlers(studio)
    base = studio.engine.base
    with gr.Row(elem_classes="ask"):
        with gr.Column(scale=5, min_width=280):
            prompt = gr.Textbox(
                label="Prompt", lines=1, max_lines=6, elem_id="prompt",
                placeholder="What should the picture show?",
            )  # fmt: skip
        with gr.Column(scale=1, min_width=150):
            buttons = run_buttons("Generate", "generate")
    _examples(base.examples, prompt)
    _known_words(base)
    with gr.Row(elem_classes="bench"):
        with gr.Column(scale=6, min_width=280, elem_classes="tools"):
            rack = adapter_rack(adapter_cards(studio.library), studio.library.folder.name)
            form = _settings(base, prompt, rack)
        with gr.Column(scale=5, min_width=280, elem_classes="result"):
            shown = _stage()
    with gr.Row(elem_classes="history"):
        gr.HTML('<h2 class="section">Recent pictures</h2>')
        png = gr.UploadButton(
            "Settings from a PNG…", file_types=[".png"], size="sm", variant="secondary",
            elem_id="png", min_width=0, scale=0,
        )  # fmt: skip
    strip = picture_strip(recent_pictures(studio.pictures))
    job = gr.BrowserState("", storage_key="shira-studio-job", secret=BROWSER_KEY)
    _connect_job(handlers, page, form, shown, buttons, strip, job)
    _connect_page(handlers, form, shown, strip, job, png)
    tab.select(handlers.rescan, outputs=form.rack, **PAGE)


def _examples(prompts: tuple[str, ...], target: gr.Textbox) -> None:
    with gr.Row(elem_classes="examples"):
        for words in prompts:
            button = gr.Button(words, size="sm", variant="secondary", min_width=0)
            button.click(partial(str, words), outputs=target, **PAGE)


def _known_words(base: Base) -> None:
    if base.vocabulary:
        with gr.Accordion(f"What {base.name} knows", open=False):
            gr.HTML(fragments.known_words(base.vocabulary), apply_default_css=False)


def _settings(base: Base, prompt: gr.Textbox, rack: gr.HTML) -> Form:
    with gr.Accordion("Settings", open=False):
        negative = gr.Textbox(
            label="Negative prompt", lines=1, max_lines=4, placeholder="What should not be there"
        )
        numbers = knobs(base, fresh=True)
        with gr.Row():
            sampler = gr.Dropdown(
                list(base.samplers), value=base.samplers[0], label="Sampler", filterable=False,
                min_width=200, info="The first one is what the base was made for.",
            )  # fmt: skip
            count = gr.Slider(
                1, MAX_COUNT, 1, step=1, label="Pictures", min_width=200,
                info="One after another, each with the next seed.",
            )  # fmt: skip
    return Form(prompt, negative, rack, *numbers, sampler, count)


def _stage() -> Shown:
    place = picture_stage(stage.empty())
    with gr.Accordion("How it was made", open=False, visible=False) as details:
        settings = gr.HTML(apply_default_css=False)
        infotext = gr.Textbox(
            label="As text", lines=3, max_lines=8, interactive=False, buttons=["copy"],
            info="Also inside the PNG, where other apps read it.",
        )  # fmt: skip
    return Shown(place, gr.State(""), details, settings, infotext)


def _connect_job(
    handlers: GenerateHandlers,
    page: gr.Blocks,
    form: Form,
    shown: Shown,
    buttons: RunButtons,
    strip: gr.HTML,
    job: gr.BrowserState,
) -> None:
    following = handlers.follow, [job, shown.current], [*shown, strip, *buttons]
    starts = [buttons.start.click, form.prompt.submit]
    begun = gr.on(
        starts,
        handlers.begin,
        [*form, shown.current],
        [job, form.seed, *buttons, shown.stage],
        **FOLLOW,
    )
    begun.success(*following, **FOLLOW)
    again = shown.stage.again(
        handlers.again, [job, shown.current], [job, *buttons, shown.stage], **FOLLOW
    )
    again.success(*following, **FOLLOW)
    buttons.stop.click(handlers.stop, job, **PAGE)
    opened = page.load(handlers.open_page, job, [strip, *form], **PAGE)
    opened.success(*following, **FOLLOW)


def _connect_page(
    handlers: GenerateHandlers,
    form: Form,
    shown: Shown,
    strip: gr.HTML,
    job: gr.BrowserState,
    png: gr.UploadButton,
) -> None:
    strip.pick(handlers.pick, job, [*shown], **FOLLOW)
    strip.more(handlers.more, outputs=strip, **PAGE)
    shown.stage.pick(handlers.pick, job, [*shown], **FOLLOW)
    shown.stage.reuse(handlers.reuse, shown.current, [*form], **FOLLOW)
    form.rack.insert(add_words, form.prompt, form.prompt, **PAGE)
    form.rack.rescan(handlers.rescan, outputs=form.rack, **PAGE)
    form.rack.chosen(handlers.prepare, form.rack, **PAGE)
    png.upload(handlers.take, png, [*form], **FOLLOW)
