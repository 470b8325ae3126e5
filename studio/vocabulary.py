"""The words that a small base knows, and what to say about those that it does not.

A base lists them in its folder's `words.json`: `concepts`, `styles`, `modifiers` (ways to draw any
concept in any style), `others` (words that mean nothing by themselves) and `alike`, other names to
the concepts that they stand for.
"""

import difflib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

WORDS_FILE = "words.json"
SUGGESTIONS = 3
_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")


@dataclass(frozen=True)
class Vocabulary:
    """What a base was trained on, in words."""

    concepts: tuple[str, ...]
    styles: tuple[str, ...]
    modifiers: tuple[str, ...]
    others: tuple[str, ...]
    alike: Mapping[str, tuple[str, ...]]

    @classmethod
    def read(cls, base: Path) -> "Vocabulary | None":
        """Read the list in a base's folder; None for a base without one, which knows any word."""
        file = base / WORDS_FILE
        if not file.is_file():
            return None
        listed = json.loads(file.read_text(encoding="utf-8"))
        return cls(
            tuple(listed["concepts"]),
            tuple(listed["styles"]),
            tuple(listed["modifiers"]),
            tuple(listed["others"]),
            {word: tuple(concepts) for word, concepts in listed["alike"].items()},
        )

    @cached_property
    def words(self) -> frozenset[str]:
        """Every single word of what the base was trained on."""
        return _words_of((*self.concepts, *self.styles, *self.modifiers, *self.others))

    def unknown(self, prompt: str, triggers: Iterable[str] = ()) -> list[str]:
        """The words of `prompt` that the base never read, except those of `triggers`, in order."""
        known = self.words | _words_of(triggers)
        found = (word for word in _words(prompt) if not known & {word, word.removesuffix("s")})
        return list(dict.fromkeys(found))

    def nearest(self, word: str) -> tuple[str, ...]:
        """Known names that the person may have meant by `word`: alike, or spelt so."""
        if word in self.alike:
            return self.alike[word][:SUGGESTIONS]
        names = (*self.concepts, *self.styles, *self.modifiers)
        spelt = difflib.get_close_matches(word, names, n=SUGGESTIONS, cutoff=0.75)
        return tuple(spelt)

    def hint(self, prompt: str, mixed: Iterable[str], shelved: Mapping[str, Iterable[str]]) -> str:
        """What to say about the unknown words of `prompt`; empty when there are none.

        `mixed` are the trigger words of the adapters that are on, `shelved` those of all adapters
        by their titles: one of them may bring what the base lacks.
        """
        unknown = self.unknown(prompt, mixed)
        if not unknown:
            return ""
        quoted = ", ".join(f"“{word}”" for word in unknown)
        tries = list(dict.fromkeys(name for word in unknown for name in self.nearest(word)))
        bringing = _bringing(unknown, shelved)
        advice = [f"Switch on the adapter {bringing}."] if bringing else []
        if tries:
            advice.append(f"Try {' or '.join(tries)}.")
        if not advice:
            advice.append(
                f"It knows {len(self.concepts)} things in {len(self.styles)} styles; "
                "they are listed under the prompt."
            )
        return f"This base never learned {quoted}, so that will not show. {' '.join(advice)}"


def _bringing(unknown: Sequence[str], shelved: Mapping[str, Iterable[str]]) -> str:
    """Which adapters were made for which of the unknown words; of several those of least else."""
    brought = {title: _words_of(triggers) for title, triggers in shelved.items()}
    made_for: dict[tuple[str, ...], list[str]] = {}
    for word in unknown:
        found = {title: len(words) for title, words in brought.items() if word in words}
        closest = [title for title, size in found.items() if size == min(found.values())]
        if closest:
            made_for.setdefault(tuple(closest[:SUGGESTIONS]), []).append(f"“{word}”")
    if len(unknown) == 1:
        return "".join(" or ".join(titles) for titles in made_for)
    return ", ".join(
        f"{' or '.join(titles)} for {' and '.join(words)}" for titles, words in made_for.items()
    )


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _words_of(texts: Iterable[str]) -> frozenset[str]:
    return frozenset(word for text in texts for word in _words(text))
