"""New words that adapters taught the text encoders, spoken by a pipeline for a while."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from shira_diffusion.errors import MismatchError, SettingError
from shira_diffusion.formats.embeddings import NewWord

TOKENIZERS = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}
"""SDXL's text encoders, and the tokenizer of each."""
_WRONG_END = 2
_KEPT = 4


def pool_at_end(pipe: Any) -> None:
    """Have an SDXL pipeline's text encoders pool at the end token, with new words as without.

    Where a configuration says that its id is 2, as SDXL's published ones do of 49407, transformers
    pools at the largest id instead: the end token's as well, until a new word has a larger one.
    """
    for part, name in TOKENIZERS.items():
        encoder, tokenizer = getattr(pipe, part), getattr(pipe, name)
        model = getattr(encoder, "text_model", encoder)
        if tokenizer is not None and getattr(model, "eos_token_id", None) == _WRONG_END:
            model.eos_token_id = tokenizer.eos_token_id


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
