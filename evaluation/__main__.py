"""Command line: python -m evaluation PLAN.toml | report | choose."""

import argparse
import sys
from collections.abc import Sequence

from diffusers.utils import logging as diffusers_logging
from rich.console import Console
from transformers.utils import logging as transformers_logging

from evaluation.command import add_plan, run_plan
from evaluation.report_command import add_report, run_report
from evaluation.search import add_choose, run_choose
from shira_diffusion.errors import ShiraError

COMMANDS = {
    "run": (add_plan, run_plan),
    "report": (add_report, run_report),
    "choose": (add_choose, run_choose),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    # A plan alone is what is mostly wanted.
    if given and given[0] not in COMMANDS and not given[0].startswith("-"):
        given.insert(0, "run")
    parser = argparse.ArgumentParser(prog="python -m evaluation", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, (add, _) in COMMANDS.items():
        add(commands.add_parser(name))
    options = parser.parse_args(given)
    # Their loading bars would tear up ours.
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    try:
        return COMMANDS[options.command][1](options)
    except ShiraError as error:
        Console(stderr=True).print(str(error), style="red", markup=False, soft_wrap=True)
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
