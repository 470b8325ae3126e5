"""Words of their own that adapters taught the text encoders, which the studio does not load."""

from collections.abc import Iterable

from shira_diffusion.cards import EMBEDDINGS
from studio.library import AdapterLibrary, Entry


def new_word(entry: Entry) -> str:
    """The word whose embeddings lie beside the adapter; empty where there are none."""
    if not (entry.folder / EMBEDDINGS).is_file():
        return ""
    return entry.info.training.get("new_token", "") or "a word of its own"


def unloaded(library: AdapterLibrary, names: Iterable[str]) -> list[str]:
    """A remark for each of these adapters that has a new word."""
    entries = (entry for entry in library.usable if entry.name in set(names))
    return [
        f"{entry.title} has taught the text encoders {word}. The studio does not load its "
        f"{EMBEDDINGS}, so its pictures here are not what it was trained for; its card says how "
        "diffusers loads it."
        for entry in entries
        if (word := new_word(entry))
    ]
