"""The command line: `shira COMMAND`, also `python -m shira_diffusion COMMAND`."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import signal
import sys
from collections.abc import Iterator, Sequence
from types import FrameType

from shira_diffusion.cli import bake, bench, convert, extract, fuse, inspect, push, tag, verify
from shira_diffusion.cli.command import FOUND_WRONG, INTERRUPTED, USAGE, Command, Outcome
from shira_diffusion.errors import SettingError, ShiraError

COMMANDS: tuple[Command, ...] = (
    inspect.COMMAND,
    verify.COMMAND,
    convert.COMMAND,
    fuse.COMMAND,
    extract.COMMAND,
    bake.COMMAND,
    tag.COMMAND,
    push.COMMAND,
    bench.COMMAND,
)
_EXIT_CODES = """exit codes:
  0  done, and nothing is wrong
  1  something is wrong with a file, a model or the disk; the message says what and what to do
  2  the command was called wrongly
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    _speak_any_language()
    options = parser().parse_args(arguments)
    command: Command = options.command
    try:
        with _stopping_cleanly():
            outcome = command.run(options)
    except ShiraError as error:
        return _fail(options, error, USAGE if isinstance(error, SettingError) else FOUND_WRONG)
    except OSError as error:
        return _fail(options, _named(error), FOUND_WRONG)
    except KeyboardInterrupt:
        sys.stderr.write("Stopped; nothing was written by halves.\n")
        return INTERRUPTED
    return _tell(options, outcome)


def _tell(options: argparse.Namespace, outcome: Outcome) -> int:
    text = json.dumps(outcome.facts, indent=2) if options.json else outcome.text
    try:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader (`| head`) has seen enough; Python must not complain about it at its end.
        sys.stdout = io.StringIO()
    return outcome.code


def _fail(options: argparse.Namespace, error: Exception, code: int) -> int:
    if options.json:
        sys.stdout.write(json.dumps({"error": str(error), "kind": type(error).__name__}) + "\n")
    sys.stderr.write(f"shira {options.command.name}: {error}\n")
    return code


def _named(error: OSError) -> ShiraError:
    where = f"{error.filename}: " if error.filename else ""
    return ShiraError(f"{where}{error.strerror or error}; check that it can be read or written")


def _speak_any_language() -> None:
    """Names and titles may hold what an old terminal cannot show."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


@contextlib.contextmanager
def _stopping_cleanly() -> Iterator[None]:
    """Let SIGTERM unwind as Ctrl-C does, so that unfinished files are removed."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:
        # Only the main thread may do this; another one is not sent signals.
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    whole = argparse.ArgumentParser(
        prog="shira",
        description="Look at sparse adapters, check, convert, fuse and publish them.",
        epilog=f"`shira COMMAND --help` explains a command with examples.\n\n{_EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parsers = whole.add_subparsers(metavar="COMMAND", required=True)
    for command in COMMANDS:
        one = parsers.add_parser(
            command.name,
            help=command.summary,
            description=command.description,
            epilog=f"examples:\n{command.examples}\n{_EXIT_CODES}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.arguments(one)
        one.add_argument("--json", action="store_true", help="print the result as JSON")
        one.set_defaults(command=command)
    return whole
