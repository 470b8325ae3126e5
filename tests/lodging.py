"""The studio that a file's browser tests share, and another for a test that is tried again."""

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest


@dataclass(frozen=True)
class Studio:
    """A studio that runs: the folder that it lives in and its address."""

    folder: Path
    address: str

    @property
    def adapters(self) -> Path:
        return self.folder / "adapters"


class Lodging:
    """Opens a studio when it is first asked for, and closes it at the end."""

    def __init__(self, opens: Callable[[], AbstractContextManager[Studio]]) -> None:
        self._opens = opens
        self._stack = ExitStack()
        self._studio: Studio | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._close()

    def studio(self, test: pytest.Item) -> Studio:
        """Return the studio, a new one if a try of `test` failed: what it left would mislead."""
        if getattr(test, "execution_count", 1) > 1:
            self._close()
        if self._studio is None:
            self._studio = self._stack.enter_context(self._opens())
        return self._studio

    def _close(self) -> None:
        self._studio = None
        self._stack.close()
