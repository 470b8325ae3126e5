"""What a value of a setting may be; each check says what is wrong with it."""

import difflib
import importlib.util
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

Check = Callable[[Any], str]
"""Says what is wrong with a value of the right type; an empty text when nothing is."""


def at_least(low: float) -> Check:
    """Return the check of a number that may not be below `low`."""
    return lambda value: "" if math.isfinite(value) and value >= low else f"is not >= {low:g}"


def one_of(choices: Sequence[str]) -> Check:
    """Return the check of a word out of `choices`."""
    return lambda value: (
        "" if value in choices else f"is not one of {', '.join(choices)}{nearest(value, choices)}"
    )


def one_installed(packages: Mapping[str, str]) -> Check:
    """Return the check of a word out of `packages` whose package is installed."""
    known = one_of(list(packages))

    def check(value: str) -> str:
        fault = known(value)
        if fault or importlib.util.find_spec(packages[value]):
            return fault
        return f"needs a package that is not here: pip install {packages[value]}"

    return check


def each(check: Check) -> Check:
    """Return the check of a list whose every word has to pass `check`."""
    return lambda words: "; ".join(f"{word!r} {fault}" for word in words if (fault := check(word)))


def is_share(value: float) -> str:
    """Check a share of a whole."""
    return "" if 0 < value <= 1 else "is not above 0 and at most 1"


def is_part(value: float) -> str:
    """Check a part of a whole, which may be none or all of it."""
    return "" if 0 <= value <= 1 else "is not between 0 and 1"


def is_new_word(value: str) -> str:
    """Check a word for a tokenizer to learn."""
    return "" if not any(part.isspace() for part in value) else "has spaces: it must be one word"


def is_hub_repo(value: str) -> str:
    """Check a repository's name on the hub."""
    parts = value.split("/")
    plain = len(parts) == 2 and all(re.fullmatch(r"[\w-][\w.-]*", part) for part in parts)
    return "" if plain or not value else "is not a repository of the hub such as user/adapter"


def is_decay(value: float) -> str:
    """Check what is left of a moving average at each step."""
    return "" if 0 <= value < 1 else "is not at least 0 and below 1"


def is_rank(value: int | str) -> str:
    """Check a rank."""
    return "" if value == "match" or (isinstance(value, int) and value > 0) else "is not a rank"


def is_folder_name(value: str) -> str:
    """Check a name that becomes a folder."""
    plain = not value.startswith((".", "_")) and not set(value) & set('/\\:*?"<>|')
    return (
        ""
        if plain
        else 'is not a plain folder name (no leading . or _, none of / \\ : * ? " < > |)'
    )


def nearest(word: str, known: Iterable[str]) -> str:
    """Return a hint at the known word that is most like `word`, "" when none is."""
    matches = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {matches[0]}?)" if matches else ""
