"""The credit for a run's data, which goes into the adapter's card."""

from pathlib import Path

CREDITS = ("CREDITS.md", "CREDITS.txt", "CREDITS", "LICENSE.md", "LICENSE.txt", "LICENSE")


def read_credit(folder: Path) -> str:
    """Return the credit or licence text that lies in a data folder, "" if there is none."""
    paths = (folder / name for name in CREDITS)
    found = next((path for path in paths if path.is_file()), None)
    return found.read_text(encoding="utf-8", errors="replace") if found else ""
