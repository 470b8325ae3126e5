"""Ctrl-C as a wish to stop after this step; a second one stops at once."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass
class StopWish:
    """Whether someone asked the run to stop."""

    asked: bool = False


@contextmanager
def graceful_stop(on_ask: Callable[[], None]) -> Iterator[StopWish]:
    """Turn the first interrupt or termination signal of the block into a `StopWish`."""
    wish = StopWish()
    former = {number: signal.getsignal(number) for number in _SIGNALS}

    def ask(_number: int, _frame: FrameType | None) -> None:
        wish.asked = True
        for number in _SIGNALS:
            signal.signal(number, signal.default_int_handler)
        on_ask()

    for number in _SIGNALS:
        signal.signal(number, ask)
    try:
        yield wish
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
