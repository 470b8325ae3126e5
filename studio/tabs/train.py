"""Train: pictures and captions in, an adapter out, by a process that outlives the page."""

from typing import NamedTuple

import gradio as gr

from studio.service import Studio
from studio.tabs import train_form, widgets
from studio.tabs.controls import PAGE
from studio.tabs.train_form import Form, Presets
from studio.tabs.train_handlers import Pictures, TrainHandlers, Watched, example_folders

SECONDS = 2.0
CHECK = {"concurrency_id": "check", "concurrency_limit": 1, "api_visibility": "private"}
TELL = {
    "concurrency_id": "train",
    "concurrency_limit": 8,
    "show_progress": "hidden",
    "api_visibility": "private",
}
"""For listeners that may have something to tell: without the queue Gradio shows no messages."""


def build(studio: Studio, tab: gr.Tab) -> None:
    """Lay out the tab and connect it."""
    handlers = TrainHandlers(studio, Presets.of(studio))
    with gr.Row(elem_classes="train"):
        with gr.Column(scale=6, min_width=280):
            gr.HTML('<h2 class="section">1 · Pictures and captions</h2>')
            pictures, extras = _pictures()
        with gr.Column(scale=5, min_width=280):
            gr.HTML('<h2 class="section">2 · What to learn</h2>')
            form = train_form.lay_out(handlers.presets)
            with gr.Row():
                check = gr.Button("Check first", elem_id="train-check", min_width=120)
                start = gr.Button(
                    "Start training", variant="primary", elem_id="train-start", min_width=120
                )
            note = gr.HTML(apply_default_css=False)
            outlook = gr.HTML(apply_default_css=False, elem_id="train-estimate")
    gr.HTML('<h2 class="section">3 · Trainings</h2>')
    runs = widgets.runs({"runs": [], "chosen": None, "bin": []})
    watched = Watched(gr.State(""), runs, gr.State(""))
    timer = gr.Timer(SECONDS, active=False)
    _connect_pictures(handlers, pictures, extras, form)
    _connect_form(handlers, form)
    check.click(handlers.check, [*pictures, *form], outlook, show_progress="hidden", **CHECK)
    start.click(handlers.start, [*pictures, *form], [*watched, outlook], **TELL)
    _connect_runs(handlers, watched, pictures, form)
    timer.tick(handlers.tick, [watched.chosen, watched.drawn], [*watched, note], **PAGE)
    tab.select(
        handlers.open_tab,
        [pictures.chosen, watched.chosen],
        [*pictures, extras.trash, *watched, note, timer],
        **PAGE,
    )


class Extras(NamedTuple):
    """What fills an image set, and what throws it away."""

    files: gr.File
    example: gr.Dropdown
    words: gr.Button
    new: gr.Button
    delete: gr.Button
    trash: gr.HTML


def _pictures() -> tuple[Pictures, Extras]:
    chosen = gr.Dropdown([], label="Image set", visible=False, elem_id="train-set")
    files = gr.File(
        label="Pictures, and .txt captions",
        file_count="multiple", file_types=["image", ".txt", ".md"], height=130,
        elem_id="train-drop",
    )  # fmt: skip
    example = gr.Dropdown(
        [path.name for path in example_folders()], value=None, label="Or begin with an example",
        elem_id="train-example", filterable=False,
    )  # fmt: skip
    with gr.Row(elem_classes="after"):
        words = gr.Button("Put the trigger into every caption", size="sm", elem_id="train-words")
        new = gr.Button("New empty set", size="sm", elem_id="train-new")
        delete = gr.Button("Delete this set", size="sm", elem_id="train-delete-set")
    shown = widgets.captions({"set": "", "images": [], "removed": None})
    trash = widgets.trash("sets")
    return Pictures(chosen, shown), Extras(files, example, words, new, delete, trash)


def _connect_pictures(
    handlers: TrainHandlers, pictures: Pictures, extras: Extras, form: Form
) -> None:
    chosen, shown = pictures
    extras.words.click(
        handlers.add_trigger, [*pictures, form.trigger, form.kind], [*pictures], **TELL
    )
    chosen.input(handlers.pictures, chosen, [*pictures], **PAGE)
    extras.files.upload(handlers.drop, [extras.files, chosen], [extras.files, *pictures], **TELL)
    extras.example.select(handlers.example, extras.example, [extras.example, *pictures], **TELL)
    extras.new.click(handlers.new_set, outputs=[*pictures], **PAGE)
    outputs = [*pictures, extras.trash]
    extras.delete.click(handlers.delete_set, chosen, outputs, **TELL)
    extras.trash.restore(handlers.restore_set, outputs=outputs, **TELL)
    extras.trash.empty(handlers.empty_trash, outputs=extras.trash, **PAGE)
    shown.caption(handlers.caption, chosen, **TELL)
    shown.take_out(handlers.take_out, chosen, [*pictures], **TELL)
    shown.put_back(handlers.put_back, chosen, [*pictures], **TELL)


def _connect_form(handlers: TrainHandlers, form: Form) -> None:
    numbers = [form.steps, form.lr, form.density, form.sample_every]
    form.kind.input(handlers.choose_kind, [form.kind, form.method], [form.preset, *numbers], **PAGE)
    for choice in (form.preset, form.method):
        choice.input(handlers.choose_preset, [form.preset, form.method], numbers, **TELL)


def _connect_runs(
    handlers: TrainHandlers, watched: Watched, pictures: Pictures, form: Form
) -> None:
    runs, outputs = watched.runs, [*watched]
    runs.choose(handlers.choose, outputs=outputs, **PAGE)
    runs.halt(handlers.halt, outputs=outputs, **TELL)
    runs.resume(handlers.resume, outputs=outputs, **TELL)
    runs.remove(handlers.remove, outputs=outputs, **TELL)
    runs.restore(handlers.restore, outputs=outputs, **TELL)
    runs.reuse(handlers.reuse, outputs=[*pictures, *form], **TELL)
