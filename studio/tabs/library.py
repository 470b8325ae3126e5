"""Library: its place on the page."""

import gradio as gr

from studio.service import Studio


def build(studio: Studio, tab: gr.Tab) -> None:  # noqa: ARG001 its helper fills it
    """Lay out the tab and connect it."""
    gr.HTML('<div class="grid-empty empty"><strong>Library</strong></div>')
