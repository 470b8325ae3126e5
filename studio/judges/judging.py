"""Scores under a picture: what a judge is asked, what it answers, and who may be one."""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

from PIL import Image

CONCEPT, STYLE = "concept", "style"


@dataclass(frozen=True)
class Score:
    """How sure a judge is that a picture shows `wanted`, 0 to 1, and what it sees first."""

    kind: str
    wanted: str
    value: float
    seen: str


@dataclass(frozen=True)
class Subject:
    """What a picture should show, in the judge's own labels; empty where it has none for it."""

    concepts: tuple[str, ...] = ()
    styles: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.concepts or self.styles)


class Judge(Protocol):
    """Whoever can say what a picture shows; `concepts` and `styles` are all that it tells apart."""

    @property
    def concepts(self) -> Collection[str]:
        """Its labels of things."""

    @property
    def styles(self) -> Collection[str]:
        """Its labels of styles."""

    def look(self, image: Image.Image, subject: Subject) -> tuple[Score, ...]:
        """One score for each part of `subject`."""


@dataclass(frozen=True)
class Member:
    """An adapter of a grid as far as a judge cares: its trigger words and what it may be called.

    `hints` are names of what it brings, the likeliest first: its own, that of its training data.
    """

    name: str
    triggers: tuple[str, ...] = ()
    hints: tuple[str, ...] = ()

    def brings(self, labels: Collection[str]) -> str:
        """Which of the labels it was made to bring, or nothing."""
        return next((hint for hint in self.hints if hint in labels), "")


def subject_of(prompt: str, members: Sequence[Member], judge: Judge) -> Subject:
    """What `prompt` asks for: what its adapters bring by their trigger words, else known words.

    The adapters are all of a grid's, so that the base is asked for the same as they are.
    """
    called = [one for one in members if any(_has(prompt, word) for word in one.triggers)]
    concepts = _brought(called, judge.concepts)
    styles = _brought(called, judge.styles)
    return Subject(
        concepts or _named(prompt, judge.concepts),
        styles or _named(prompt, judge.styles, " style"),
    )


def _brought(members: Sequence[Member], labels: Collection[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(filter(None, (one.brings(labels) for one in members))))


def _named(prompt: str, labels: Collection[str], after: str = "") -> tuple[str, ...]:
    """The longest label that stands in the prompt: of "fire truck" that, not "fire"."""
    found = (label for label in labels if _has(prompt, label + after))
    longest = max(found, key=len, default=None)
    return (longest,) if longest else ()


def _has(prompt: str, words: str) -> bool:
    return bool(words) and bool(re.search(rf"\b{re.escape(words.lower())}\b", prompt.lower()))
