"""A progress bar on stderr, through rich where it is installed and somebody looks."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Told = Callable[[int, int], None]
"""Called with how much is done, and of how much."""


@contextmanager
def progress(label: str) -> Iterator[Told]:
    """A bar for a block, which calls what it is given; nothing in pipes and logs."""
    if not sys.stderr.isatty():
        yield _silent
        return
    try:
        from rich.console import Console
        from rich.progress import Progress
    except ImportError:
        yield _plain(label)
        sys.stderr.write("\n")
        return
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(label, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _silent(_done: int, _total: int) -> None:
    pass


def _plain(label: str) -> Told:
    def tell(done: int, total: int) -> None:
        sys.stderr.write(f"\r{label}: {done} of {total}")
        sys.stderr.flush()

    return tell
