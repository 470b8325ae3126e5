"""What the UNet is told of the captions: embeddings that are kept, or that are made anew."""

from collections.abc import Callable

from diffusers import StableDiffusionXLPipeline
from torch import Tensor, nn

from shira_diffusion.words import TOKENIZERS
from training.batches import Batch

TEXT_ENCODERS = tuple(TOKENIZERS)
"""SDXL's text encoders, by component."""

Texts = Callable[[Batch], tuple[Tensor, Tensor]]
"""Gives a batch's prompt embeddings (N, tokens, width) and pooled embeddings (N, width)."""


def kept(batch: Batch) -> tuple[Tensor, Tensor]:
    """Return what was encoded before the training, as the encoders stay what they were."""
    return batch.prompt_embeds, batch.pooled


def live(pipe: StableDiffusionXLPipeline) -> Texts:
    """Have the pipeline encode the captions in each step, so that gradients reach its encoders."""

    def encode(batch: Batch) -> tuple[Tensor, Tensor]:
        embeds, _, pooled, _ = pipe.encode_prompt(
            list(batch.captions), device=batch.latents.device, do_classifier_free_guidance=False
        )
        return embeds, pooled

    return encode


def inner(encoder: nn.Module, part: str) -> nn.Module:
    """Return CLIP's `encoder` or `embeddings`, wherever this version of transformers has it."""
    return getattr(encoder, "text_model", encoder).get_submodule(part)
