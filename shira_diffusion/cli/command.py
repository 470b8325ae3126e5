"""What a command is, and what it comes to."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass

FOUND_WRONG = 1
USAGE = 2
INTERRUPTED = 130


@dataclass(frozen=True)
class Outcome:
    """The result of a command: as text to read, as `facts` for JSON, and the exit code."""

    text: str
    facts: Mapping[str, object]
    code: int = 0


@dataclass(frozen=True)
class Command:
    """One command: its help, its arguments and what it does.

    `run` returns an `Outcome`, or raises `ShiraError`: `SettingError` for a wrong call.
    """

    name: str
    summary: str
    description: str
    examples: str
    arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], Outcome]
