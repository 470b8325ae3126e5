"""What a run tells: to the person at the terminal and, by the event log, to other programs."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from training.events import EventLog

Advance = Callable[[int, str], None]
"""Tells a bar how much is done and what to say about it."""


@dataclass(frozen=True)
class Report:
    """A terminal and an event log that hear the same things."""

    console: Console
    log: EventLog

    def note(self, text: str, event: str, **values: object) -> None:
        """Print a line and log it as an event."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)
        self.log.write(event, **values)

    def warn(self, text: str) -> None:
        """Print and log something that went wrong but does not end the run."""
        self.console.print(
            f"warning: {text}", style="yellow", markup=False, highlight=False, soft_wrap=True
        )
        self.log.write("warning", message=text)

    @contextmanager
    def bar(self, what: str, total: int, done: int = 0) -> Iterator[Advance]:
        """Show a live bar for the block; where there is no terminal, a line at every tenth."""
        if not self.console.is_terminal:
            yield self._lines(what, total)
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[detail]}"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self.console) as progress:
            task = progress.add_task(what, total=total, completed=done, detail="")
            yield lambda count, detail: progress.update(task, completed=count, detail=detail)

    def _lines(self, what: str, total: int) -> Advance:
        every = max(1, total // 10)

        def advance(count: int, detail: str) -> None:
            if count % every == 0 or count == total:
                line = f"{what} {count}/{total} {detail}".rstrip()
                self.console.print(line, markup=False, highlight=False, soft_wrap=True)

        return advance
