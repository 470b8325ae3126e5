"""The event log of a run: one JSON object a line, appended, for other programs to follow."""

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from training.json_lines import closing, objects


@dataclass(frozen=True)
class EventLog:
    """Appends to one file; a line that a dying process left torn is passed over."""

    path: Path

    def write(self, event: str, **values: object) -> None:
        """Add one event with the time in UTC."""
        time = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = json.dumps({"time": time, "event": event, **values})
        self.path.parent.mkdir(parents=True, exist_ok=True)
        start = closing(self.path)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(f"{start}{line}\n")

    def find(self, event: str) -> list[dict[str, Any]]:
        """Return all events of this kind, oldest first."""
        content = self.path.read_bytes() if self.path.is_file() else b""
        return [row for row in objects(content) if row.get("event") == event]
