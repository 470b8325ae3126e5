"""Words of their own that adapters taught the text encoders: found on disk, spoken with them."""

import hashlib
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

from shira_diffusion.cards import EMBEDDINGS
from shira_diffusion.errors import ShiraError
from shira_diffusion.formats.embeddings import NewWord, read_word
from studio.errors import BrokenAdapterError
from studio.library import Entry


def has_word(entry: Entry) -> bool:
    """Whether embeddings of a word lie beside the adapter."""
    return (entry.folder / EMBEDDINGS).is_file()


def word_of(entry: Entry) -> NewWord:
    """The word that an adapter brings; raises `BrokenAdapterError` where it cannot be read."""
    path = entry.folder / EMBEDDINGS
    try:
        stat = path.stat()
        stated = entry.info.training.get("new_token", "")
        return _read(path, stated, entry.name, stat.st_mtime_ns, stat.st_size)
    except (ShiraError, OSError) as error:
        words = str(error).replace(str(path), EMBEDDINGS)
        raise BrokenAdapterError(
            f"The adapter {entry.name!r} cannot be used with its new word: {words}. Without "
            f"{EMBEDDINGS} in its folder it can be used without the word."
        ) from error


def words_of(entries: Mapping[str, Entry], mix: Mapping[str, float]) -> list[NewWord]:
    """The words of those adapters of a mix that have one and are not at strength 0."""
    return [word_of(entry) for name, entry in entries.items() if mix.get(name) and has_word(entry)]


def told(entry: Entry) -> str:
    """The adapter's word for people, or what is wrong with it; empty where it has none."""
    try:
        return word_of(entry).word if has_word(entry) else ""
    except BrokenAdapterError as error:
        return str(error)


def word_sha256(entry: Entry) -> str:
    """The hash of the file of an adapter's word, in hexadecimal; empty where none is read."""
    try:
        return hashlib.sha256((entry.folder / EMBEDDINGS).read_bytes()).hexdigest()
    except OSError:
        return ""


def mark_of(entry: Entry) -> str:
    """What is another as soon as pictures with an adapter are: its hash, with its word's."""
    return "+".join(filter(None, (entry.sha256(), word_sha256(entry))))


@lru_cache(maxsize=64)
def _read(path: Path, word: str, owner: str, _modified_ns: int, _size: int) -> NewWord:
    return read_word(path, word, owner)
