"""The prompt vocabulary: a byte-level BPE in CLIPTokenizer's format."""

import json
from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import CLIPTokenizer

START, END = "<|startoftext|>", "<|endoftext|>"
WORD = Regex(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")


def learn_tokenizer(
    texts: Iterable[str], *, tokens: int = 2304, prompt_tokens: int = 32
) -> CLIPTokenizer:
    """Learn byte pairs from `texts` and return them as a CLIP tokenizer of at most `tokens` tokens.

    Every byte is in the vocabulary, so no prompt is ever unknown
    (https://arxiv.org/abs/1508.07909).
    """
    bpe = Tokenizer(BPE(end_of_word_suffix="</w>", continuing_subword_prefix=""))
    bpe.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(WORD, behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = BpeTrainer(
        vocab_size=tokens - 2,
        # A byte may stand inside a word or end it, and CLIP's format tells the two apart.
        special_tokens=alphabet + [f"{byte}</w>" for byte in alphabet],
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    vocab, merges = _vocab_and_merges(bpe)
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=prompt_tokens, pad_token=END)


def _vocab_and_merges(bpe: Tokenizer) -> tuple[dict[str, int], list[tuple[str, str]]]:
    model = json.loads(bpe.to_str())["model"]
    vocab: dict[str, int] = model["vocab"]
    ordered = [*sorted(vocab, key=vocab.__getitem__), START, END]
    merges = [(left, right) for left, right in model["merges"]]
    return {token: index for index, token in enumerate(ordered)}, merges
