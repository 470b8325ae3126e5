"""Adapters and pictures in the form that the page's components take."""

from collections.abc import Iterable
from typing import Any

from studio.library import AdapterLibrary, Entry
from studio.pictures import PictureStore, made_words
from studio.tabs.fragments import file_url
from studio.thumbnails import thumbnail_uri

RECENT = 36


def adapter_cards(library: AdapterLibrary) -> list[dict[str, Any]]:
    """One card for each adapter folder by title, broken ones with their `problem`."""
    return [_card(entry) for entry in by_title(library.entries)]


def by_title(entries: Iterable[Entry]) -> list[Entry]:
    """The entries in the order in which people look for them."""
    return sorted(entries, key=lambda entry: entry.label.casefold())


def _card(entry: Entry) -> dict[str, Any]:
    return {
        "name": entry.name,
        "title": entry.label,
        "method": entry.info.method,
        "words": list(entry.info.trigger_words),
        "size": size_words(entry.stamp.size),
        "description": entry.info.description[:300],
        "twin": entry.is_twin,
        "problem": entry.problem,
        "thumbnail": "" if entry.problem else thumbnail_uri(entry.thumbnail),
    }


def size_words(size: int) -> str:
    """A file size as people read it, which no line breaks in two."""
    return f"{size / 1e6:.1f}\u00a0MB" if size >= 1e6 else f"{max(size / 1e3, 1):.0f}\u00a0kB"


def recent_pictures(pictures: PictureStore, limit: int = RECENT) -> list[dict[str, str]]:
    """The newest pictures for the strip, newest first."""
    return [
        {
            "name": name,
            "source": file_url(pictures.folder / f"{name}.png"),
            "title": made_words(name),
        }
        for name in pictures.recent(limit)
    ]
