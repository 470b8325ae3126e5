"""New words that adapters taught the text encoders, spoken for a while.

As textual inversion (https://arxiv.org/abs/2208.01618) keeps them: a word has one or several
embeddings in each text encoder. They lie beside the adapter, under SDXL's usual keys.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from shira_diffusion.errors import FormatError, MismatchError, SettingError
from shira_diffusion.formats import container, metadata

TOKENIZERS = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}
KEYS = {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}
"""Under which key a file has the embeddings of each text encoder."""
MOST_VECTORS = 75
"""More embeddings than CLIP reads tokens."""
_LONGEST = 64
_KEPT = 4


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


class Lexicon:
    """Teaches an SDXL pipeline new words for a while; afterwards it is what it was.

    The pipeline's own tokenizers and embeddings are never written to: for the while other
    tokenizers stand in their place, and the embeddings' module is listened to. Make it while the
    pipeline is as it was loaded. `check` may be called in any thread, `using` in one at a time.
    """

    def __init__(self, pipe: Any) -> None:
        self._pipe = pipe
        self._own = {part: copy.deepcopy(getattr(pipe, name)) for part, name in TOKENIZERS.items()}
        # CLIP's vocabulary marks what ends a word.
        self._known = {
            token.removesuffix("</w>").lower()
            for tokenizer in self._own.values()
            for token in tokenizer.get_vocab()
        }
        self._kept: dict[tuple[str, ...], dict[str, Any]] = {}

    def check(self, words: Sequence[NewWord]) -> None:
        """Raise `SettingError` or `MismatchError` where the words cannot be spoken together."""
        taken: dict[str, NewWord] = {}
        for one in words:
            for token in one.tokens:
                if token.lower() in self._known:
                    raise SettingError(
                        f"{_whose(one)} the word {one.word!r}, but the base knows {token!r} "
                        "already: train it again with another new_token"
                    )
                other = taken.setdefault(token.lower(), one)
                if other is not one:
                    raise SettingError(
                        f"{_whose(one)} the word {one.word!r}, and so does {other.owner!r}: "
                        "use one of the two, or train one again with another new_token"
                    )
            for part, rows in one.vectors.items():
                width = self._table(part).weight.shape[1]
                if rows.shape[1] != width:
                    raise MismatchError(
                        f"{_whose(one)} the word {one.word!r} for another base: its embeddings "
                        f"for {part} are {rows.shape[1]} wide, those of this base {width}"
                    )

    @contextmanager
    def using(self, words: Sequence[NewWord]) -> Iterator[None]:
        """Within the block prompts may have the words; raises as `check` does."""
        self.check(words)
        if not words:
            yield
            return
        words = sorted(words, key=lambda one: one.word)
        with ExitStack() as undo:
            for part, tokenizer in self._tokenizers(words).items():
                before = getattr(self._pipe, TOKENIZERS[part])
                undo.callback(setattr, self._pipe, TOKENIZERS[part], before)
                setattr(self._pipe, TOKENIZERS[part], tokenizer)
                rows = torch.cat([one.vectors[part] for one in words])
                for handle in _listen(self._table(part), len(self._own[part]), rows):
                    undo.callback(handle.remove)
            yield

    def _tokenizers(self, words: Sequence[NewWord]) -> dict[str, Any]:
        tokens = tuple(token for one in words for token in one.tokens)
        if tokens not in self._kept:
            while len(self._kept) >= _KEPT:
                del self._kept[next(iter(self._kept))]
            made = copy.deepcopy(self._own)
            for tokenizer in made.values():
                for token in tokens:  # one by one, as diffusers does
                    tokenizer.add_tokens(token)
            self._kept[tokens] = made
        return self._kept[tokens]

    def _table(self, part: str) -> nn.Embedding:
        table: nn.Embedding = getattr(self._pipe, part).get_input_embeddings()
        return table


def _whose(one: NewWord) -> str:
    return f"the adapter {one.owner!r} brings" if one.owner else "somebody brings"


def _listen(table: nn.Embedding, first: int, rows: Tensor) -> Iterator[Any]:
    """Have `table` answer ids from `first` on with `rows` (count, width); yields the handles."""
    asked: list[Tensor] = []

    def before(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        asked[:] = args[:1]
        return args[0].masked_fill(args[0] >= first, 0), *args[1:]

    def after(_: nn.Module, __: Any, found: Tensor) -> Tensor:
        ids = asked.pop().to(found.device)
        places = (ids - first).clamp(min=0)
        return torch.where((ids >= first)[..., None], rows.to(found)[places], found)

    yield table.register_forward_pre_hook(before)
    yield table.register_forward_hook(after)
