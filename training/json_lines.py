"""Files of JSON objects, one a line, appended to by processes that may die in mid-line."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def objects(content: bytes) -> Iterator[dict[str, Any]]:
    """Yield the object of every whole line; a torn one is passed over."""
    for line in content.splitlines():
        try:
            found = json.loads(line)
        except ValueError:
            continue
        if isinstance(found, dict):
            yield found


def closing(path: Path) -> str:
    """What has to be written first, so that what a dying process left torn stays alone."""
    if not path.is_file() or not path.stat().st_size:
        return ""
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return "" if file.read() == b"\n" else "\n"
