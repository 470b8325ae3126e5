"""Deleting with undo: a folder goes into the trash and comes back from it as it was."""

import json
import re
import secrets
import shutil
import threading
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from shira_diffusion.errors import ShiraError

_TICKET = re.compile(r"\d{8}-\d{6}-[0-9a-f]{12}")
_NOTE, _CONTENT = "note.json", "content"


class TrashError(ShiraError):
    """Something cannot be put into the trash, or is not in it any more."""


@dataclass(frozen=True)
class Discarded:
    """One thing in the trash: `name` is that of its former folder, `title` what people call it."""

    ticket: str
    name: str
    title: str


class Trash:
    """Below one folder, on the disk of what is thrown away, so that moving is all or nothing."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.Lock()

    def discard(self, path: Path, title: str) -> Discarded:
        """Move the folder or file at `path` here."""
        ticket = f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(6)}"
        item = Discarded(ticket, path.name, title)
        place = self.folder / ticket
        with self._lock:
            try:
                place.mkdir(parents=True)
                note = json.dumps({"name": item.name, "title": title})
                (place / _NOTE).write_text(note, encoding="utf-8")
                path.rename(place / _CONTENT)
            except OSError as error:
                shutil.rmtree(place, ignore_errors=True)
                raise TrashError(
                    f"{title!r} cannot be deleted ({error.strerror or error}); check the rights "
                    "of its folder"
                ) from error
        return item

    def items(self) -> tuple[Discarded, ...]:
        """What can be brought back, newest first."""
        if not self.folder.is_dir():
            return ()
        tickets = (path.name for path in self.folder.iterdir() if _TICKET.fullmatch(path.name))
        found = (self._read(ticket) for ticket in sorted(tickets, reverse=True))
        return tuple(item for item in found if item)

    def restore(self, ticket: str, target: Path) -> None:
        """Move it to `target`, which may not be there yet; raises `TrashError` if it is gone."""
        with self._lock:
            self.find(ticket)
            if target.exists():
                raise TrashError(f"there is something in the place of {target.name!r} again")
            target.parent.mkdir(parents=True, exist_ok=True)
            (self.folder / ticket / _CONTENT).rename(target)
            shutil.rmtree(self.folder / ticket)

    def find(self, ticket: str) -> Discarded:
        """What was thrown away under this ticket."""
        item = next((item for item in self.items() if item.ticket == ticket), None)
        if item is None:
            raise TrashError("It is not in the trash any more.")
        return item

    def empty(self) -> int:
        """Delete everything for good and say how many things it was."""
        with self._lock:
            count = len(self.items())
            shutil.rmtree(self.folder, ignore_errors=True)
        return count

    def _read(self, ticket: str) -> Discarded | None:
        place = self.folder / ticket
        try:
            note = json.loads((place / _NOTE).read_text(encoding="utf-8"))
            found = Discarded(ticket, str(note["name"]), str(note["title"]))
        except (OSError, ValueError, LookupError, TypeError):
            return None
        return found if (place / _CONTENT).exists() else None
