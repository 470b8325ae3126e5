"""The event log of a run: one JSON object a line, appended, for other programs to follow."""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class EventLog:
    """Appends to one file; a line that a dying process left torn is passed over."""

    path: Path

    def write(self, event: str, **values: object) -> None:
        """Add one event with the time in UTC."""
        time = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = json.dumps({"time": time, "event": event, **values})
        self.path.parent.mkdir(parents=True, exist_ok=True)
        torn = "\n" if self._is_torn() else ""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(f"{torn}{line}\n")

    def find(self, event: str) -> list[dict[str, Any]]:
        """Return all events of this kind, oldest first."""
        return [row for row in self._rows() if row.get("event") == event]

    def _rows(self) -> Iterator[dict[str, Any]]:
        if not self.path.is_file():
            return
        for line in self.path.read_bytes().splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if isinstance(row, dict):
                yield row

    def _is_torn(self) -> bool:
        if not self.path.is_file() or not self.path.stat().st_size:
            return False
        with self.path.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read() != b"\n"
