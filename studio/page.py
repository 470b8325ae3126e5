"""The page: header, tabs, endpoints, and how it is served."""

from pathlib import Path

import gradio as gr
from starlette.middleware import Middleware

from shira_diffusion.errors import SettingError
from studio.door import Door
from studio.errors import AddressError
from studio.outward import NoFetching
from studio.service import Studio
from studio.tabs import api, blend, compare, fragments, generate, library, train
from studio.theme import theme

STATIC = Path(__file__).parent / "static"
QUEUE = 256
"""How many calls may be open at once: every page that follows a job holds one."""
UPLOAD = "2gb"
"""How large a file may be that is sent here; what is inside is checked by those who take it."""
SWEPT = (3600, 24 * 3600)
"""How often Gradio's copies of files are looked through, and how old those are that go (s)."""

TABS = {
    "Compare": compare.build,
    "Train": train.build,
    "Library": library.build,
}


def build_page(studio: Studio, *, as_tools: bool) -> gr.Blocks:
    """Lay out everything; `as_tools` says that the endpoints are an MCP server's tools as well."""
    with gr.Blocks(
        title="SHiRA Studio", analytics_enabled=False, fill_width=True, delete_cache=SWEPT
    ) as page:
        gr.HTML(fragments.header(studio.engine.base), apply_default_css=False)
        kept = blend.kept_in_browser()
        with gr.Tabs():
            with gr.Tab("Generate", id="generate") as first:
                generate.build(studio, page, first)
            with gr.Tab("Blend", id="blend") as second:
                blend.build(studio, page, second, kept)
            for title, build in TABS.items():
                with gr.Tab(title, id=title.lower()) as tab:
                    build(studio, tab)
        gr.HTML(fragments.footer(), apply_default_css=False)
        api.build(studio, as_tools=as_tools)
    page.queue(max_size=QUEUE, default_concurrency_limit=None)
    return page


def serve(studio: Studio, door: Door) -> gr.Blocks:
    """Start to serve the page and return at once; raises `AddressError` if the port is taken.

    Gradio serves the outputs folder, less the studio's own state, and nothing else of ours;
    nothing is asked of other machines.
    """
    page = build_page(studio, as_tools=door.mcp)
    try:
        page.launch(
            server_name=door.host,
            server_port=door.port,
            auth=door.login,
            mcp_server=door.mcp,
            app_kwargs={"middleware": [Middleware(NoFetching)]},
            max_threads=QUEUE,  # Gradio's bound on open calls, those that only wait included
            theme=theme(),
            css_paths=sorted(STATIC.glob("*.css")),
            allowed_paths=[str(studio.outputs)],
            blocked_paths=[str(studio.state)],
            max_file_size=UPLOAD,
            footer_links=[],
            run_history=False,
            ssr_mode=False,
            share=False,
            quiet=True,
            prevent_thread_lock=True,
        )
    except OSError as error:
        raise AddressError(
            f"{door.host}:{door.port} cannot be used, perhaps because another program has it. "
            f"Choose another port, for example --port {door.port + 1}."
        ) from error
    if door.mcp and page.mcp_error:
        page.close(verbose=False)
        raise SettingError(f"the MCP server cannot start: {page.mcp_error}")
    return page
