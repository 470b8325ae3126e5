"""Stage two: the UNet and both text encoders together, on cached latents.

v-prediction (https://arxiv.org/abs/2202.00512) on a schedule with zero terminal SNR
(https://arxiv.org/abs/2305.08891), with dropped captions for classifier-free guidance
(https://arxiv.org/abs/2207.12598).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from random import Random

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, StableDiffusionXLPipeline
from torch import Tensor, nn

from emoji_xl.architecture import TIME_IDS
from emoji_xl.captions import caption, made_up_caption, modified_caption
from emoji_xl.clock import Clock
from emoji_xl.data import Artwork, caption_tokens, empty_tokens, on_white, shift_and_scale
from emoji_xl.modifiers import MODIFIERS
from emoji_xl.train_vae import encode
from emoji_xl.updater import Updater

PEAK_RATE = 1e-3
EMPTY_CAPTIONS = 0.05
ZEROED_EMBEDDINGS = 0.08
MODIFIED = 0.25
"""Share of pictures that a modifier has changed."""
MADE_UP = 0.1
"""Share of captions with a made-up word, which changes nothing.

A trigger word is one until its adapter is trained, and a base that blurs under it teaches the
adapter to draw blurs. The text encoders do not learn from these captions: they would learn to take
all unknown words for the same, and adapters could not tell their triggers apart.
"""
CAPTION_VARIANTS = 40
MADE_UP_VARIANTS = 16
MODIFIED_VARIANTS = 4
SHIFTED_VARIANTS = 15
STRAIGHT_SHARE = (0.3, 0.85)
"""Share of pictures at their own place and size: before and after `SHARPEN_AT` of the time."""
SHARPEN_AT = 0.6


@dataclass(frozen=True)
class Batch:
    """Inputs of one step.

    Latents (B, 4, h, w), token ids (B, tokens); `keep` (B,) is 0 where the caption is zeroed,
    `known` (B,) is 0 where the text encoders do not learn from it.
    """

    latents: Tensor
    tokens: Tensor
    keep: Tensor
    known: Tensor


class Denoiser(nn.Module):
    """What is trained: two text encoders and the UNet, as SDXL's pipeline joins them."""

    def __init__(self, pipe: StableDiffusionXLPipeline) -> None:
        super().__init__()
        self.text_encoder = pipe.text_encoder
        self.text_encoder_2 = pipe.text_encoder_2
        self.unet = pipe.unet
        pixels = float(pipe.unet.config.sample_size * 4)
        sizes = torch.tensor([[pixels, pixels, 0, 0, pixels, pixels]])
        assert sizes.shape[1] == TIME_IDS
        self.sizes: Tensor
        self.register_buffer("sizes", sizes, persistent=False)

    def forward(
        self, noisy: Tensor, timesteps: Tensor, tokens: Tensor, keep: Tensor, known: Tensor
    ) -> Tensor:
        """Predict v for `noisy` latents.

        Rows with keep = 0 see zeros for their caption, rows with known = 0 pass no gradient to it.
        """
        first = self.text_encoder(tokens, output_hidden_states=True)
        second = self.text_encoder_2(tokens, output_hidden_states=True)
        # SDXL takes both encoders' last layer but one.
        hidden = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1)
        hidden = torch.where(known[:, None, None] > 0, hidden, hidden.detach())
        pooled = torch.where(known[:, None] > 0, second.text_embeds, second.text_embeds.detach())
        added = {
            "text_embeds": pooled * keep[:, None],
            "time_ids": self.sizes.expand(len(noisy), -1),
        }
        return self.unet(
            noisy,
            timesteps,
            encoder_hidden_states=hidden * keep[:, None, None],
            added_cond_kwargs=added,
            return_dict=False,
        )[0]


class Batches:
    """Latents and caption tokens of every picture: at its own place, shifted, and modified."""

    def __init__(
        self, artwork: Artwork, vae: AutoencoderKL, pipe: StableDiffusionXLPipeline
    ) -> None:
        images = on_white(artwork.rgba)
        copies = [encode(vae, images)]
        for _ in range(SHIFTED_VARIANTS):
            copies.append(encode(vae, shift_and_scale(images, shift=0.05, smallest=0.85)))
        self.latents = torch.stack(copies, dim=1).to(torch.bfloat16)
        modified = [encode(vae, modify(artwork.rgba)) for modify in MODIFIERS.values()]
        self.modified_latents = torch.stack(modified, dim=1).to(torch.bfloat16)

        def tokens(write: Callable[[str, str, Random], str], variants: int) -> Tensor:
            ids = caption_tokens(artwork.pictures, pipe.tokenizer, write, variants=variants)
            return ids.to(images.device)

        self.tokens = tokens(caption, CAPTION_VARIANTS)
        self.made_up_tokens = tokens(made_up_caption, MADE_UP_VARIANTS)
        writers = [partial(modified_caption, modifier=words) for words in MODIFIERS]
        self.modified_tokens = torch.stack([tokens(w, MODIFIED_VARIANTS) for w in writers], dim=1)
        self.empty = empty_tokens(pipe.tokenizer).to(images.device)

    def draw(self, size: int, progress: float) -> Batch:
        """Draw one batch; `progress` of the run decides how many pictures stand straight."""
        pictures, copies = self.latents.shape[:2]
        device = self.latents.device

        def pick(below: int) -> Tensor:
            return torch.randint(below, (size,), device=device)

        def chance(share: float) -> Tensor:
            return torch.rand(size, device=device) < share

        rows, modifiers = pick(pictures), pick(len(MODIFIERS))
        modified, made_up, empty = chance(MODIFIED), chance(MADE_UP), chance(EMPTY_CAPTIONS)
        known = modified | empty | ~made_up
        straight = chance(STRAIGHT_SHARE[progress >= SHARPEN_AT])
        latents = torch.where(
            modified[:, None, None, None],
            self.modified_latents[rows, modifiers],
            self.latents[rows, torch.where(straight, 0, pick(copies))],
        )
        tokens = self.tokens[rows, pick(CAPTION_VARIANTS)]
        invented = self.made_up_tokens[rows, pick(MADE_UP_VARIANTS)]
        changed = self.modified_tokens[rows, modifiers, pick(MODIFIED_VARIANTS)]
        tokens = torch.where(made_up[:, None], invented, tokens)
        tokens = torch.where(modified[:, None], changed, tokens)
        return Batch(
            latents=latents.float(),
            tokens=torch.where(empty[:, None], self.empty, tokens),
            keep=(~chance(ZEROED_EMBEDDINGS)).float(),
            known=known.float(),
        )


def noise_and_target(
    latents: Tensor, noise: Tensor, alphas_cumprod: Tensor, timesteps: Tensor
) -> tuple[Tensor, Tensor]:
    """Return noisy latents and v, both (B, 4, h, w).

    x_t = sqrt(a) x_0 + sqrt(1 - a) noise and v = sqrt(a) noise - sqrt(1 - a) x_0, with a the
    cumulative product at the timestep.
    """
    alpha = alphas_cumprod[timesteps].sqrt()[:, None, None, None]
    sigma = (1 - alphas_cumprod[timesteps]).sqrt()[:, None, None, None]
    return alpha * latents + sigma * noise, alpha * noise - sigma * latents


def zero_terminal_snr(betas: Tensor) -> Tensor:
    """Cumulative alphas of `betas`, rescaled to end at 0 (algorithm 1 of arXiv 2305.08891)."""
    root = (1 - betas.double()).cumprod(0).sqrt()
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    return (root**2).float()


def scheduler_alphas(pipe: StableDiffusionXLPipeline) -> Tensor:
    """Cumulative alphas (timesteps,) of the pipeline's schedule with zero terminal SNR."""
    config = pipe.scheduler.config
    steps = config.num_train_timesteps
    root_betas = torch.linspace(config.beta_start**0.5, config.beta_end**0.5, steps)
    return zero_terminal_snr(root_betas**2)


def base_updater(
    pipe: StableDiffusionXLPipeline, device: torch.device, clock: Clock, *, dropout: float
) -> Updater[Denoiser]:
    """Build the optimizer of the pipeline's UNet and text encoders.

    `dropout` is the share of activations that the UNet drops while it learns.
    """
    denoiser = Denoiser(pipe).train().to(device)
    for module in denoiser.unet.modules():
        if isinstance(module, nn.Dropout):
            module.p = dropout
    denoiser.unet.to(memory_format=torch.channels_last)
    return Updater(denoiser, clock, peak=PEAK_RATE, decay=0.9995)


def train_base(
    updater: Updater[Denoiser], batches: Batches, alphas: Tensor, *, batch: int, compiled: bool
) -> Iterator[Tensor]:
    """Yield the loss after every step until time is out.

    `alphas` are the schedule's cumulative alphas (timesteps,).
    """
    denoiser = updater.module
    device = batches.latents.device
    alphas = alphas.to(device)
    torch.manual_seed(1 + updater.step)
    if compiled:
        denoiser.unet.compile()
    while updater.running:
        drawn = batches.draw(batch, updater.clock.progress)
        timesteps = torch.randint(len(alphas), (batch,), device=device)
        noise = torch.randn_like(drawn.latents)
        noisy, target = noise_and_target(drawn.latents, noise, alphas, timesteps)
        with torch.autocast(device.type, torch.bfloat16):
            v = denoiser(noisy, timesteps, drawn.tokens, drawn.keep, drawn.known)
        loss = F.mse_loss(v.float(), target)
        updater.update(loss)
        yield loss.detach()
