"""What could not be done and has not been done since."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from evaluation.records import Lines


def failures_in(
    folders: Iterable[Path],
    records: Iterable[Mapping[str, Any]],
    adapters: Iterable[Mapping[str, Any]],
) -> list[str]:
    """Say what failed in runs and is not there by now: each piece once, as it was last tried."""
    there = {record["key"] for record in records} | {line["name"] for line in adapters}
    found = {
        str(line["key"]): f"{line['name']}: {line['message']}"
        for folder in folders
        for line in Lines(folder / "failures.jsonl").read()
        if line.get("key") and line["key"] not in there
    }
    return sorted(found.values())
