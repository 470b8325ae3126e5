"""The command line: `python -m training PRESET.toml [--set key=value ...]`."""

import argparse
import sys
from collections.abc import Sequence

from diffusers.utils import logging as diffusers_logging
from rich.console import Console
from transformers.utils import logging as transformers_logging

from shira_diffusion.errors import ShiraError
from training.doctor import examine
from training.run import run
from training.settings import load_config
from training.written import describe_settings

REFUSED = 2
INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    options = _parser().parse_args(arguments)
    # Their loading bars would tear up ours.
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    place = options.preset
    try:
        config = load_config(options.preset, [*options.settings])
        place = config.run
        if options.dry_run:
            return _report(examine(config, Console(), resume=options.resume))
        outcome = run(config, Console(), resume=options.resume, stop_after=options.stop_after)
    except ShiraError as error:
        _complain(str(error))
        return REFUSED
    except OSError as error:
        _complain(
            f"{error.filename or place}: {error.strerror or error}. See to it that this can be "
            "read and written and that its disk has room."
        )
        return REFUSED
    except KeyboardInterrupt:
        _complain("Stopped at once; --resume goes on from the last checkpoint.")
        return INTERRUPTED
    return INTERRUPTED if outcome.interrupted else 0


def _report(faults: Sequence[str]) -> int:
    for fault in faults:
        _complain(f"fault: {fault}")
    return REFUSED if faults else 0


def _complain(message: str) -> None:
    Console(stderr=True).print(message, style="red", markup=False, highlight=False, soft_wrap=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m training",
        description="Train a sparse adapter, or its LoRA twin, on a folder of images.",
        epilog=describe_settings(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("preset", metavar="PRESET", help="a TOML file or a preset's name")
    parser.add_argument(
        "--set",
        dest="settings",
        metavar="key=value",
        action="extend",
        nargs="+",
        default=[],
        help="override settings of the preset",
    )
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="say what a run would do and what is wrong with it; train and write nothing",
    )
    parser.add_argument(
        "--stop-after", type=_positive, metavar="N", help="save and stop after N steps of this call"
    )
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


if __name__ == "__main__":
    sys.exit(main())
