"""SHiRA Studio: `python app.py`, then open the address that it prints."""

import argparse
import os
import sys
from pathlib import Path


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=7860)
    parser.add_argument("--base", default="models/emoji-xl", help="folder, file or hub id of SDXL")
    parser.add_argument("--adapters", type=Path, default=Path("adapters"))
    parser.add_argument("--outputs", type=Path, default=Path("outputs"))
    _add_door(parser.add_argument_group("who may come in"))
    _add_machine(parser.add_argument_group("device and memory"))
    return parser.parse_args()


def _add_door(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--listen", nargs="?", const="0.0.0.0", metavar="ADDRESS",
        help="let other machines in; needs --auth or --no-auth",
    )  # fmt: skip
    group.add_argument(
        "--auth", default=os.environ.get("SHIRA_STUDIO_AUTH"), metavar="USER:PASSWORD",
        help="ask for a login; SHIRA_STUDIO_AUTH keeps it out of the list of processes",
    )  # fmt: skip
    group.add_argument("--no-auth", action="store_true", help="let anybody in who can connect")
    group.add_argument("--mcp", action="store_true", help="offer the endpoints as an MCP server")


def _add_machine(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--device", help="cpu, cuda or mps; the best there is by default")
    group.add_argument("--dtype", help="float32, bfloat16 or float16; by default what fits")
    group.add_argument("--enable-vae-tiling", action="store_true", help="decode in tiles")
    group.add_argument("--enable-vae-slicing", action="store_true", help="decode one by one")
    group.add_argument(
        "--enable-model-cpu-offload", action="store_true", help="one part of the base on the GPU"
    )
    group.add_argument("--compile", action="store_true", help="faster sampling on CUDA")


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
    from studio.door import Door
    from studio.machine import Machine
    from studio.page import serve
    from studio.service import open_studio

    given = vars(options)
    try:
        door = Door(**{name: given[name] for name in ("port", "listen", "auth", "no_auth", "mcp")})
        machine = Machine(**{name: given[name] for name in Machine.__dataclass_fields__})
        studio = open_studio(options.base, options.adapters, options.outputs, machine)
    except ShiraError as error:
        sys.exit(f"The studio cannot start: {error}")
    try:
        page = serve(studio, door)
        Console().print(f"SHiRA Studio is ready: [bold]{page.local_url}[/]  (Ctrl+C ends it)")
        page.block_thread()
    except ShiraError as error:
        sys.exit(f"The studio cannot start: {error}")
    finally:
        studio.close()


if __name__ == "__main__":
    main()
