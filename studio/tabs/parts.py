"""The studio's own page components; their behaviour is in `static/*.js`.

They are made by functions: for a subclass of a component Gradio writes a stub file beside it.
"""

from pathlib import Path
from typing import Any

import gradio as gr

STATIC = Path(__file__).parent.parent / "static"


def adapter_rack(cards: list[dict[str, Any]], place: str) -> gr.HTML:
    """Cards of adapters, and a strength and the trigger words of each chosen one.

    Its value is that of `studio.tabs.rack`. Events: `insert` (with `word`), `rescan`, and `chosen`
    when other adapters are. `place` is the folder that the empty rack points to.
    """
    return _part("rack", {}, cards=cards, place=place)


def picture_strip(pictures: list[dict[str, str]]) -> gr.HTML:
    """Recent pictures; `pick` carries the `name` of the one clicked, `more` how many are `shown`.

    Its property `more` says whether there are older ones.
    """
    return _part("strip", pictures, more=False)


def picture_stage(content: str) -> gr.HTML:
    """The picture, as `studio.tabs.stage` writes it; its events are `reuse`, `again` and `pick`."""
    return gr.HTML(content, js_on_load=_script("stage"), apply_default_css=False, elem_id="stage")


def _script(name: str) -> str:
    return (STATIC / f"{name}.js").read_text(encoding="utf-8")


def _part(name: str, value: Any, **properties: Any) -> gr.HTML:
    # The template never changes: what comes from files is put in by the script, as text. Gradio's
    # templates would evaluate it.
    return gr.HTML(
        value,
        html_template=f'<div class="{name}"></div>',
        js_on_load=_script(name),
        apply_default_css=False,
        elem_id=name,
        **properties,
    )
