"""Pivotal tuning (https://arxiv.org/abs/2106.05744): embeddings of a new word, beside the weights.

As textual inversion (https://arxiv.org/abs/2208.01618) keeps them: one word may have several.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import StableDiffusionXLPipeline
from torch import Tensor, nn
from transformers import CLIPTokenizer

from shira_diffusion import SparseTuner, masks
from shira_diffusion.delta import index_dtype
from shira_diffusion.formats.embeddings import token_names
from shira_diffusion.words import TOKENIZERS

_WEIGHT = "token_embedding.weight"


class TrainedWord:
    """Trains the rows `rows` of an embedding's weight; the module is CLIP's `embeddings`."""

    def __init__(self, embeddings: nn.Module, rows: Sequence[int]) -> None:
        table = embeddings.get_parameter(_WEIGHT)
        width = table.shape[1]
        places = torch.tensor(sorted(rows))[:, None] * width + torch.arange(width)
        self._shape = tuple(places.shape)
        entries = places.flatten().to(index_dtype(table.numel()))
        self._tuner = SparseTuner(embeddings, {_WEIGHT: entries})

    @property
    def vectors(self) -> Tensor:
        """The embeddings (rows, width) as they are now, fp32 on the CPU."""
        return self._tuner.values.detach().cpu().reshape(self._shape).clone()

    def parameters(self) -> list[nn.Parameter]:
        """Return the one flat vector of all rows."""
        return self._tuner.parameters()

    def gather(self) -> None:
        """Do nothing: the tuner has put the gradients there."""

    def write(self) -> None:
        """Bring the live embeddings up to date."""
        self._tuner.write()

    def state(self) -> dict[str, Any]:
        """Return the rows' values."""
        return self._tuner.state_dict()

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take the rows' values."""
        self._tuner.load_state_dict(state)

    def facts(self) -> dict[str, str]:
        """Return how many embeddings the word has."""
        return {"embeddings of the new word": str(self._shape[0])}

    def close(self) -> None:
        """Put the first embeddings back."""
        self._tuner.close()


def add_word(
    pipe: StableDiffusionXLPipeline, word: str, count: int, like: str, seed: int
) -> dict[str, list[int]]:
    """Teach both tokenizers `word` and give it `count` embeddings; return their rows.

    They start as those of the words of `like` in turn, or at random, as long as others are. The
    rows are by component.
    """
    rows = {}
    for component, tokenizer_name in TOKENIZERS.items():
        encoder, tokenizer = getattr(pipe, component), getattr(pipe, tokenizer_name)
        table = encoder.get_input_embeddings().weight.detach()
        start = _start(tokenizer, table, count, like, f"{component}/{word}", seed)
        pipe.load_textual_inversion(start, token=word, text_encoder=encoder, tokenizer=tokenizer)
        rows[component] = tokenizer.convert_tokens_to_ids(token_names(word, count))
    return rows


def remove_word(pipe: StableDiffusionXLPipeline, word: str, count: int) -> None:
    """Undo `add_word`."""
    for component, tokenizer_name in TOKENIZERS.items():
        pipe.unload_textual_inversion(
            token_names(word, count),
            text_encoder=getattr(pipe, component),
            tokenizer=getattr(pipe, tokenizer_name),
        )


def _start(
    tokenizer: CLIPTokenizer, table: Tensor, count: int, like: str, name: str, seed: int
) -> Tensor:
    if like:
        known = tokenizer(like, add_special_tokens=False).input_ids
        return table[[known[number % len(known)] for number in range(count)]].clone()
    generator = masks.layer_generator(seed, name)
    drawn = torch.randn(count, table.shape[1], generator=generator)
    return (drawn * table.float().std().cpu()).to(table)
