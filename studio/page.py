"""The page: header, tabs, endpoints, and how it is served."""

from pathlib import Path

import gradio as gr

from studio.errors import AddressError
from studio.service import Studio
from studio.tabs import api, blend, compare, fragments, generate, library, train
from studio.theme import theme

STATIC = Path(__file__).parent / "static"
QUEUE = 32
"""How many jobs may wait before further ones are refused."""

TABS = {
    "Blend": blend.build,
    "Compare": compare.build,
    "Train": train.build,
    "Library": library.build,
}


def build_page(studio: Studio) -> gr.Blocks:
    """Lay out everything."""
    with gr.Blocks(title="SHiRA Studio", analytics_enabled=False, fill_width=True) as page:
        gr.HTML(fragments.header(studio.engine.base), apply_default_css=False)
        with gr.Tabs():
            with gr.Tab("Generate", id="generate"):
                generate.build(studio, page)
            for title, build in TABS.items():
                with gr.Tab(title, id=title.lower()) as tab:
                    build(studio, tab)
        gr.HTML(fragments.footer(), apply_default_css=False)
        api.build(studio)
    page.queue(max_size=QUEUE)
    return page


def serve(studio: Studio, *, host: str, port: int) -> gr.Blocks:
    """Start to serve the page and return at once; raises `AddressError` if the port is taken.

    Gradio serves the outputs folder and nothing else of ours; nothing is asked of other machines.
    """
    page = build_page(studio)
    try:
        page.launch(
            server_name=host,
            server_port=port,
            theme=theme(),
            css_paths=sorted(STATIC.glob("*.css")),
            allowed_paths=[str(studio.outputs)],
            blocked_paths=[str(studio.state)],
            footer_links=[],
            run_history=False,
            ssr_mode=False,
            share=False,
            quiet=True,
            prevent_thread_lock=True,
        )
    except OSError as error:
        raise AddressError(
            f"{host}:{port} cannot be used, perhaps because another program has it. "
            f"Choose another port, for example --port {port + 1}."
        ) from error
    return page
