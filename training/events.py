"""The event log of a run: one JSON object a line, appended, for other programs to follow."""

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path


@dataclass(frozen=True)
class EventLog:
    """Appends to one file; each line is whole as soon as it can be read."""

    path: Path

    def write(self, event: str, **values: object) -> None:
        """Add one event with the time in UTC."""
        time = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = json.dumps({"time": time, "event": event, **values})
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def has(self, event: str) -> bool:
        """Whether such an event was ever written."""
        if not self.path.is_file():
            return False
        lines = self.path.read_text(encoding="utf-8").splitlines()
        return any(json.loads(line)["event"] == event for line in lines if line.endswith("}"))
