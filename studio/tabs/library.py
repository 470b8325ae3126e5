"""Library: find, import, describe, rename, download and delete adapters."""

from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr

from shira_diffusion.errors import ShiraError
from studio.library import Entry
from studio.service import Studio
from studio.shelf.editing import MAX_STRENGTH, MIN_STRENGTH, Edit
from studio.shelf.exports import FORMATS, offered
from studio.tabs import library_view, widgets
from studio.tabs.controls import PAGE, SHELF
from studio.tabs.telling import remark, told

WORK = {**SHELF, "show_progress": "hidden", "api_visibility": "private"}
"""For listeners that read or write files, or have something to tell."""
WARNING_S = 30
"""How long it is said why a file was not imported."""


class Fields(NamedTuple):
    """What can be changed about an adapter, in the order that `LibraryHandlers.save` takes it."""

    title: Any
    triggers: Any
    tags: Any
    description: Any
    strength: Any


class Leaf(NamedTuple):
    """Everything that belongs to the chosen adapter; `name` is what it is found by."""

    name: Any
    details: Any
    panel: Any
    form: Any
    delivery: Any


@dataclass(frozen=True)
class LibraryHandlers:
    """What the controls of the tab do."""

    studio: Studio

    def open_tab(self, chosen: str) -> Any:
        """The cards as they are on disk now."""
        self.studio.library.rescan()
        return library_view.shelf_value(self.studio.shelf, chosen)

    def choose(self, event: gr.EventData) -> tuple[Any, ...]:
        """Show the adapter that was clicked; the outputs are the shelf, `Leaf` and `Fields`."""
        return self._opened(str(event.name))

    def take_in(self, files: list[str] | None) -> tuple[Any, ...]:
        """Import files; what is wrong with one does not keep out the others."""
        arrived = []
        for path in (Path(file) for file in files or []):
            try:
                arrival = self.studio.shelf.take_upload(path)
            except ShiraError as error:
                gr.Warning(escape(str(error)), title="Not imported", duration=WARNING_S)
            else:
                arrived.append(arrival)
                remark(" ".join([f"“{arrival.title}” is in the library.", *arrival.remarks]))
        return gr.update(value=None), *self._opened(arrived[-1].name if arrived else "")

    def save(self, name: str, *values: Any) -> tuple[Any, ...]:
        """Write what was changed; another title gives the folder another name."""
        shelf = self.studio.shelf
        try:
            change = Edit.read(*values)
            before = self.studio.library.find(name)
            twin = self.studio.library.twin_of(name) if change.title != before.title else None
            if change.title != before.title:
                name = shelf.rename(name, change.title)
            shelf.edit(name, change)
        except ShiraError as error:
            raise told(error) from error
        folder = ""
        if change.title != before.title and self.studio.library.find(name).is_namesake:
            folder = f" Another one has this title too: this one's folder is {name}."
        also = f" Its LoRA twin “{twin.title}” was renamed with it." if twin else ""
        remark(f"“{change.title}” is saved.{folder}{also}")
        return self._opened(name)

    def download(self, name: str, form: str) -> Any:
        """Make the file in the form that was chosen."""
        try:
            entry = self.studio.library.find(name)
            return library_view.parcel(
                self.studio.shelf.exports.pack(self.studio.library, entry, form)
            )
        except ShiraError as error:
            raise told(error) from error

    def delete(self, name: str) -> tuple[Any, ...]:
        """Move the adapter into the trash, without its LoRA twin, and say so."""
        twin = self.studio.library.twin_of(name)
        try:
            ticket = self.studio.shelf.delete(name).ticket
        except ShiraError as error:
            raise told(error) from error
        if twin is not None:
            remark(f"“{twin.title}” (folder {twin.name}) stays in the library.")
        return self._opened("", ticket)

    def restore(self, event: gr.EventData) -> tuple[Any, ...]:
        """Bring a deleted adapter back."""
        try:
            return self._opened(self.studio.shelf.undo(str(event.ticket)))
        except ShiraError as error:
            raise told(error) from error

    def empty(self, chosen: str) -> Any:
        """Delete for good what is in the trash."""
        self.studio.shelf.trash.empty()
        return library_view.shelf_value(self.studio.shelf, chosen)

    def _opened(self, name: str, deleted: str = "") -> tuple[Any, ...]:
        entry = next((one for one in self.studio.library.entries if one.name == name), None)
        cards = library_view.shelf_value(self.studio.shelf, entry.name if entry else "", deleted)
        if entry is None:
            return cards, *_closed()
        return cards, *_leaf(entry), *_fields(entry)


def _closed() -> tuple[Any, ...]:
    nothing = Leaf("", library_view.leaf_empty(), gr.update(visible=False), gr.skip(), {})
    return *nothing, *[gr.skip()] * len(Fields._fields)


def _leaf(entry: Entry) -> Leaf:
    forms = [(FORMATS[form], form) for form in offered(entry)]
    return Leaf(
        name=entry.name,
        details=library_view.leaf(entry),
        panel=gr.update(visible=True),
        form=gr.update(choices=forms, value=forms[0][1]),
        delivery={},
    )


def _fields(entry: Entry) -> Fields:
    info = entry.info
    return Fields(
        title=entry.title,
        triggers=", ".join(info.trigger_words),
        tags=", ".join(info.tags),
        description=info.description,
        strength=float(info.strength) if _is_number(info.strength) else 0,
    )


def _is_number(text: str) -> bool:
    try:
        return MIN_STRENGTH <= float(text) <= MAX_STRENGTH
    except ValueError:
        return False


class Controls(NamedTuple):
    """The buttons of the tab."""

    files: gr.UploadButton
    save: gr.Button
    download: gr.Button
    delete: gr.Button


def build(studio: Studio, tab: gr.Tab) -> None:
    """Lay out the tab and connect it."""
    handlers = LibraryHandlers(studio)
    with gr.Row(elem_classes="bench"):
        with gr.Column(scale=6, min_width=280):
            files = gr.UploadButton(
                "Import adapters (.safetensors, or a PEFT folder as .zip)",
                file_count="multiple", file_types=[".safetensors", ".zip"],
                elem_id="library-import", size="md",
            )  # fmt: skip
            shelf = widgets.shelf({"cards": [], "chosen": "", "bin": []})
        with gr.Column(scale=4, min_width=280, elem_id="library-leaf"):
            leaf, fields, buttons = _leaf_side()
    controls = Controls(files, *buttons)
    _connect(handlers, tab, shelf, leaf, fields, controls)


def _leaf_side() -> tuple[Leaf, Fields, tuple[gr.Button, gr.Button, gr.Button]]:
    details = gr.HTML(library_view.leaf_empty(), apply_default_css=False)
    with gr.Column(visible=False) as panel:
        with gr.Row(elem_classes="take"):
            form = gr.Dropdown(
                [], label="Download as", filterable=False, min_width=150, elem_id="library-form"
            )
            download = gr.Button("Download", size="md", min_width=110, elem_id="library-download")
        delivery = widgets.delivery()
        with gr.Accordion("Edit", open=False, elem_id="library-edit"):
            fields = Fields(
                gr.Textbox(
                    label="Name", elem_id="library-title",
                    info="Its folder is named after it, and so is its LoRA twin.",
                ),
                gr.Textbox(label="Trigger words, with commas", elem_id="library-triggers"),
                gr.Textbox(label="Tags, with commas", elem_id="library-tags"),
                gr.Textbox(
                    label="Description", lines=2, max_lines=6, elem_id="library-description"
                ),
                gr.Number(
                    0, label="Suggested strength", minimum=MIN_STRENGTH, maximum=MAX_STRENGTH,
                    step=0.05, info="0 gives no hint.", elem_id="library-strength",
                ),
            )  # fmt: skip
            save = gr.Button("Save", variant="primary", elem_id="library-save")
        delete = gr.Button("Delete", size="md", elem_id="library-delete")
    return Leaf(gr.State(""), details, panel, form, delivery), fields, (save, download, delete)


def _connect(
    handlers: LibraryHandlers,
    tab: gr.Tab,
    shelf: gr.HTML,
    leaf: Leaf,
    fields: Fields,
    controls: Controls,
) -> None:
    everything = [shelf, *leaf, *fields]
    tab.select(handlers.open_tab, leaf.name, shelf, **PAGE)
    shelf.rescan(handlers.open_tab, leaf.name, shelf, **PAGE)
    shelf.choose(handlers.choose, outputs=everything, **WORK)
    shelf.restore(handlers.restore, outputs=everything, **WORK)
    shelf.empty(handlers.empty, leaf.name, shelf, **PAGE)
    controls.files.upload(handlers.take_in, controls.files, [controls.files, *everything], **WORK)
    controls.save.click(handlers.save, [leaf.name, *fields], everything, **WORK)
    controls.download.click(handlers.download, [leaf.name, leaf.form], leaf.delivery, **WORK)
    controls.delete.click(handlers.delete, leaf.name, everything, **WORK)
