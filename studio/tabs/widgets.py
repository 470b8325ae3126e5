"""Page components of Compare, Train and Library; their behaviour is in `static/*.js`."""

from typing import Any

import gradio as gr

from studio.shelf.trash import Trash
from studio.tabs.parts import STATIC


def captions(value: dict[str, Any]) -> gr.HTML:
    """Pictures with editable captions. Events: `caption`, `take_out`, `put_back`."""
    return _widget("captions", value)


def runs(value: dict[str, Any]) -> gr.HTML:
    """Trainings. Events: `choose`, `halt`, `resume`, `remove`, `reuse`, `restore`."""
    return _widget("runs", value)


def shelf(value: dict[str, Any]) -> gr.HTML:
    """The library's cards. Events: `choose`, `restore`, `empty`, `rescan`."""
    return _widget("shelf", value)


def trash(place: str) -> gr.HTML:
    """What was deleted of the tab `place`, as `binned` gives it. Events: `restore`, `empty`."""
    return _widget("trash", binned(None), elem_id=f"{place}-trash")


def binned(trash: Trash | None, deleted: str = "") -> dict[str, Any]:
    """What lies in a trash; `deleted` is the ticket of what went last from this page."""
    items = trash.items() if trash else ()
    found = [{"ticket": item.ticket, "title": item.title} for item in items]
    return {"deleted": deleted, "bin": found}


def delivery() -> gr.HTML:
    """A link to a file, which is followed at once when it comes."""
    return _widget("delivery", {})


def _widget(name: str, value: dict[str, Any], elem_id: str = "") -> gr.HTML:
    # As in `parts`: the template never changes, what comes from files is put in as text.
    scripts = [(STATIC / f"{one}.js").read_text(encoding="utf-8") for one in ("dom", "bin", name)]
    return gr.HTML(
        value,
        html_template=f'<div class="{name}"></div>',
        js_on_load="\n".join(scripts),
        apply_default_css=False,
        elem_id=elem_id or name,
    )
