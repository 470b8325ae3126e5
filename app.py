"""SHiRA Studio: `python app.py`, then open the address that it prints."""

import argparse
import os
import sys
from pathlib import Path


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=7860)
    parser.add_argument("--host", default="127.0.0.1", help="another address lets others in")
    parser.add_argument("--base", default="models/emoji-xl", help="folder, file or hub id of SDXL")
    parser.add_argument("--adapters", type=Path, default=Path("adapters"))
    parser.add_argument("--outputs", type=Path, default=Path("outputs"))
    parser.add_argument("--device", help="cpu, cuda or mps; the best there is by default")
    return parser.parse_args()


def main() -> None:
    """Load the base and serve the page until Ctrl+C."""
    options = arguments()
    # All are read while the packages below are imported.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    # transformers otherwise greets everybody with remarks on torchvision.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    # A folder is all there is to read, while for a single file diffusers gets SDXL's configuration.
    if Path(options.base).expanduser().is_dir():
        os.environ["HF_HUB_OFFLINE"] = "1"
    from rich.console import Console

    from shira_diffusion.errors import ShiraError
    from studio.page import serve
    from studio.service import open_studio

    try:
        studio = open_studio(options.base, options.adapters, options.outputs, device=options.device)
        page = serve(studio, host=options.host, port=options.port)
    except ShiraError as error:
        sys.exit(f"The studio cannot start: {error}")
    Console().print(f"SHiRA Studio is ready: [bold]{page.local_url}[/]  (Ctrl+C ends it)")
    page.block_thread()


if __name__ == "__main__":
    main()
