"""Names: what people write is kept as text, and folders get names made here."""

import re
import unicodedata
from collections.abc import Container

MAX_TEXT = 2000
MAX_NAME = 48
# Windows gives these names to devices.
_DEVICES = frozenset(
    {"con", "prn", "aux", "nul"} | {f"{port}{n}" for port in ("com", "lpt") for n in range(10)}
)


def plain(text: str | None, most: int = MAX_TEXT) -> str:
    """The text on one line, without control characters or lone surrogates, cut after `most`."""
    kept = (" " if one.isspace() else one for one in text or "" if _is_text(one))
    return " ".join("".join(kept).split())[:most].strip()


def _is_text(one: str) -> bool:
    # Cf joins emoji and turns the direction of Arabic; the other C classes are never seen.
    return one.isspace() or unicodedata.category(one) not in ("Cc", "Cs", "Cn", "Co")


def words(text: str | None) -> tuple[str, ...]:
    """What is written between commas or on lines of its own, each once, in order."""
    parts = (plain(part) for part in re.split(r"[,\n]", text or ""))
    return tuple(dict.fromkeys(part for part in parts if part))


def folder_name(title: str) -> str:
    """A folder's name of a-z, 0-9 and dashes that reminds of `title`; "adapter" where none does."""
    letters = unicodedata.normalize("NFKD", title).encode("ascii", "ignore").decode().lower()
    name = re.sub(r"[^a-z0-9]+", "-", letters).strip("-")[:MAX_NAME].strip("-")
    return "adapter" if not name or name in _DEVICES else name


def free_name(name: str, taken: Container[str], ending: str = "") -> str:
    """`name + ending`, or the first of `name-2 + ending`, `name-3 + ending` ... not in `taken`."""
    number, free = 1, name + ending
    while free in taken:
        number += 1
        free = f"{name}-{number}{ending}"
    return free
