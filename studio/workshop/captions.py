"""Captions: several a picture, one a line; where a trigger word goes; what a file's name says."""

import re

from studio.shelf.naming import plain

STYLE, CONCEPT = "style", "concept"
# What cameras and programs call pictures: no words for a caption.
_NO_WORDS = frozenset(
    {"img", "image", "dsc", "dscn", "dscf", "pic", "picture", "photo", "pxl", "screenshot"}
    | {"untitled", "file", "download", "unnamed", "whatsapp", "at", "copy", "edit", "edited"}
)
_LETTERS = re.compile(r"[^\W\d_]+")


def cleaned(captions: str) -> str:
    """The captions with one space between words and no empty lines."""
    lines = (plain(line) for line in captions.splitlines())
    return "\n".join(line for line in lines if line)


def with_trigger(captions: str, trigger: str, kind: str) -> str:
    """Every caption with the trigger: at its end for a style, at its start for a concept.

    Captions that have it already stay as they are; without any, the trigger is the caption.
    """
    lines = cleaned(captions).splitlines() or [""]
    return "\n".join(_with_trigger(line, plain(trigger), kind) for line in lines)


def _with_trigger(line: str, trigger: str, kind: str) -> str:
    if re.search(rf"(?<!\w){re.escape(trigger)}(?!\w)", line, re.IGNORECASE):
        return line
    parts = (line, trigger) if kind == STYLE else (trigger, line)
    return ", ".join(part.strip(", ") for part in parts if part.strip(", "))


def from_file_name(name: str) -> str:
    """A first caption from a file's name: `red_fox-01.png` is "red fox", `IMG_0123.jpg` is ""."""
    stem = name.rpartition(".")[0] or name
    found = [word.lower() for word in _LETTERS.findall(stem)]
    told = [word for word in found if word not in _NO_WORDS]
    # Random letters of a hash or an id are no caption.
    return " ".join(told) if told and any(len(word) > 2 for word in told) else ""
