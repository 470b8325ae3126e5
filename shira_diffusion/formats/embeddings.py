"""The file of a new word: its embeddings in each text encoder, under SDXL's usual keys.

As textual inversion (https://arxiv.org/abs/2208.01618) keeps them: a word has one or several. The
file lies beside the adapter that was trained with the word.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from shira_diffusion.adapter import AdapterInfo
from shira_diffusion.errors import FormatError
from shira_diffusion.formats import container, metadata

KEYS = {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}
"""Under which key a file has the embeddings of each text encoder."""
MOST_VECTORS = 75
"""More embeddings than CLIP reads tokens."""
_LONGEST = 64


@dataclass(frozen=True, eq=False)
class NewWord:
    """A word with its embeddings (count, width) for each text encoder; `owner` brings it."""

    word: str
    vectors: Mapping[str, Tensor]
    owner: str = ""

    @property
    def tokens(self) -> list[str]:
        """What a tokenizer calls the embeddings."""
        return token_names(self.word, len(next(iter(self.vectors.values()))))


def token_names(word: str, count: int) -> list[str]:
    """What diffusers calls the `count` embeddings of a word."""
    return [word, *(f"{word}_{number}" for number in range(1, count))]


def read_word(path: Path, word: str = "", owner: str = "") -> NewWord:
    """The word in an embeddings file; without `word` the one that the file names.

    Raises `FormatError` for a file that is not whole, lacks an encoder's embeddings, has another
    shape than (count, width) or values that are not finite, and for one that names no word.
    """
    stored = container.read(path)
    info = metadata.decode(stored.metadata)
    word = word or (info.training.get("new_token", "") if info else "")
    if not word or len(word) > _LONGEST or any(sign.isspace() for sign in word):
        raise FormatError(
            f"{path}: it does not say which word its embeddings are of, a single one of at most "
            f"{_LONGEST} characters (new_token is {word[:_LONGEST]!r}); get it from its trainer"
        )
    vectors = {part: _vectors(path, key, stored.tensors) for part, key in KEYS.items()}
    if len({len(rows) for rows in vectors.values()}) > 1:
        raise FormatError(f"{path}: clip_l and clip_g have different numbers of embeddings")
    return NewWord(word, vectors, owner)


def write_word(path: Path, vectors: Mapping[str, Tensor], info: AdapterInfo) -> None:
    """Write a word's embeddings (count, width), by component; `read_word` is its inverse."""
    stored = {KEYS[component]: rows.contiguous() for component, rows in vectors.items()}
    container.write(path, stored, metadata.encode(info))


def _vectors(path: Path, key: str, tensors: Mapping[str, Tensor]) -> Tensor:
    if key not in tensors:
        raise FormatError(
            f"{path}: it has no {key}; an SDXL word needs {' and '.join(KEYS.values())}"
        )
    rows = tensors[key]
    rows = rows[None] if rows.dim() == 1 else rows
    if rows.dim() != 2 or not 1 <= len(rows) <= MOST_VECTORS or not rows.is_floating_point():
        raise FormatError(
            f"{path}: {key} is {rows.dtype} of {' x '.join(map(str, rows.shape))}, not 1 to "
            f"{MOST_VECTORS} rows of floats"
        )
    if not bool(rows.isfinite().all()):
        raise FormatError(f"{path}: {key} has values that are NaN or infinite; get the file again")
    return rows.float()
