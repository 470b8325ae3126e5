"""The one place where our errors become what Gradio shows.

Gradio renders messages as HTML, and ours quote names from files: they are escaped here.
"""

import html

import gradio as gr

from shira_diffusion.errors import ShiraError


def told(error: ShiraError) -> gr.Error:
    """What to raise so that the page shows `error`."""
    return gr.Error(
        html.escape(str(error), quote=False), title="That did not work", print_exception=False
    )


def remark(words: str) -> None:
    """Show something worth knowing that is not an error."""
    gr.Info(html.escape(words, quote=False), title="Please note")
