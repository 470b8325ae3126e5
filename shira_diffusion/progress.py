"""How far long work is, told to whoever asks."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import TypeVar

Progress = Callable[[int, int], None]
"""Called with how many steps are done, and of how many."""

_Item = TypeVar("_Item")


def counted(items: Collection[_Item], progress: Progress | None) -> Iterator[_Item]:
    """The items one by one; the one before is done when the next is asked for."""
    for done, item in enumerate(items):
        if progress is not None:
            progress(done, len(items))
        yield item
    if progress is not None:
        progress(len(items), len(items))
