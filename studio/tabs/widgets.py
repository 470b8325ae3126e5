"""The page components of Train and Library; their behaviour is in `static/*.js`, after `dom.js`."""

from typing import Any

import gradio as gr

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


def delivery() -> gr.HTML:
    """A link to a file, which is followed at once when it comes."""
    return _widget("delivery", {})


def _widget(name: str, value: dict[str, Any]) -> gr.HTML:
    # As in `parts`: the template never changes, what comes from files is put in as text.
    scripts = [(STATIC / f"{one}.js").read_text(encoding="utf-8") for one in ("dom", name)]
    return gr.HTML(
        value,
        html_template=f'<div class="{name}"></div>',
        js_on_load="\n".join(scripts),
        apply_default_css=False,
        elem_id=name,
    )
