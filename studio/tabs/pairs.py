"""Which adapters can be compared, and which two to begin with."""

import re

from shira_diffusion.cards import SPARSE
from studio.library import AdapterLibrary


def adapter_choices(library: AdapterLibrary) -> list[tuple[str, str]]:
    """Title and name of every adapter that can be compared, those with a LoRA twin first."""
    alone = [entry for entry in library.usable if entry.info.method in SPARSE]
    alone.sort(key=lambda entry: library.twin_of(entry.name) is None)
    return [(entry.label, entry.name) for entry in alone]


def proposed_pair(library: AdapterLibrary) -> tuple[str | None, str | None]:
    """Names for A and B to begin with: a style and a concept where there are both.

    A style is told by the word "style" in its trigger words; having a LoRA twin counts for more.
    """
    names = [name for _, name in adapter_choices(library)]
    entries = {entry.name: entry for entry in library.usable}

    def is_style(name: str) -> bool:
        return any(re.search(r"\bstyle\b", word) for word in entries[name].info.trigger_words)

    def drawbacks(name: str) -> tuple[bool, bool]:
        return library.twin_of(name) is None, is_style(name) == is_style(names[0])

    return next(iter(names), None), min(names[1:], key=drawbacks, default=None)
