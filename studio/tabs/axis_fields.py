"""The fields for one axis of an X/Y grid."""

from typing import Any, NamedTuple

import gradio as gr

from shira_diffusion.errors import SettingError
from studio.grids.axes import KINDS, NONE, NOTHING, Axis, axis
from studio.library import AdapterLibrary
from studio.tabs.controls import PAGE

NOTHING_NAME = "Nothing"


class AxisFields(NamedTuple):
    """What changes, and its values: as text, or as chosen adapters."""

    kind: gr.Dropdown
    text: gr.Textbox
    names: gr.Dropdown


def axis_fields(side: str, chosen: str, library: AdapterLibrary) -> AxisFields:
    """Lay out the fields of the axis `side` ("rows"), beginning with the kind `chosen`."""
    first = KINDS[chosen]
    with gr.Column(min_width=260), gr.Group():
        kind = gr.Dropdown(
            [NOTHING_NAME, *KINDS], value=chosen, label=f"{side.capitalize()}: what changes",
            elem_id=f"axis-{side}", filterable=False,
        )  # fmt: skip
        text = gr.Textbox(
            first.example, label="Values", info=_info(first.hint), lines=1, max_lines=8,
            visible=not first.adapters, elem_id=f"axis-{side}-values",
        )  # fmt: skip
        names = gr.Dropdown(
            axis_choices(library), value=[], multiselect=True, label="Adapters",
            visible=first.adapters, elem_id=f"axis-{side}-adapters",
        )  # fmt: skip
    fields = AxisFields(kind, text, names)
    kind.input(_turn, kind, [text, names], **PAGE)
    return fields


def axis_choices(library: AdapterLibrary) -> list[tuple[str, str]]:
    """Every adapter that works, LoRA twins too, and none."""
    return [("No adapter", NONE), *((entry.label, entry.name) for entry in library.usable)]


def read_axis(kind: str, text: str | None, names: list[str] | None) -> Axis:
    """The axis that the fields describe."""
    if kind == NOTHING_NAME:
        return NOTHING
    if kind not in KINDS:
        raise SettingError(f"There is no axis {kind!r}; there are {', '.join(KINDS)}.")
    chosen = KINDS[kind]
    return axis(chosen, "\n".join(names or ()) if chosen.adapters else text or "")


def _turn(kind: str) -> tuple[Any, Any]:
    """Show what fits the kind, with an example in it."""
    if kind == NOTHING_NAME:
        return gr.update(visible=False), gr.update(visible=False)
    chosen = KINDS[kind]
    by_line = not chosen.example and not chosen.adapters
    text = gr.update(
        value=chosen.example,
        info=_info(chosen.hint),
        lines=3 if by_line else 1,
        visible=not chosen.adapters,
    )
    return text, gr.update(visible=chosen.adapters)


def _info(hint: str) -> str:
    return f"{hint[:1].upper()}{hint[1:]}."
