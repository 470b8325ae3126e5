"""Stage two: the UNet and both text encoders together, on cached latents.

v-prediction (https://arxiv.org/abs/2202.00512) on a schedule with zero terminal SNR
(https://arxiv.org/abs/2305.08891), with dropped captions for classifier-free guidance
(https://arxiv.org/abs/2207.12598).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, StableDiffusionXLPipeline
from torch import Tensor, nn

from emoji_xl.architecture import TIME_IDS
from emoji_xl.clock import Clock
from emoji_xl.data import Artwork, caption_tokens, empty_tokens, on_white, shift_and_scale
from emoji_xl.train_vae import encode
from emoji_xl.updater import Updater

PEAK_RATE = 1e-3
EMPTY_CAPTIONS = 0.05
ZEROED_EMBEDDINGS = 0.08
CAPTION_VARIANTS = 48
SHIFTED_VARIANTS = 15
STRAIGHT_SHARE = (0.3, 0.85)
"""Share of pictures at their own place and size: before and after `SHARPEN_AT` of the time."""
SHARPEN_AT = 0.6


@dataclass(frozen=True)
class Batch:
    """Inputs of one step: latents (B, 4, h, w), token ids (B, tokens), keep (B,) is 0 or 1."""

    latents: Tensor
    tokens: Tensor
    keep: Tensor


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

    def forward(self, noisy: Tensor, timesteps: Tensor, tokens: Tensor, keep: Tensor) -> Tensor:
        """Predict v for `noisy` latents; rows with keep = 0 see zeros for their caption."""
        first = self.text_encoder(tokens, output_hidden_states=True)
        second = self.text_encoder_2(tokens, output_hidden_states=True)
        # SDXL takes both encoders' last layer but one.
        hidden = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1)
        pooled = second.text_embeds * keep[:, None]
        added = {"text_embeds": pooled, "time_ids": self.sizes.expand(len(noisy), -1)}
        return self.unet(
            noisy,
            timesteps,
            encoder_hidden_states=hidden * keep[:, None, None],
            added_cond_kwargs=added,
            return_dict=False,
        )[0]


class Batches:
    """Latents of every picture at its own place and in shifted variants, with caption tokens."""

    def __init__(
        self, artwork: Artwork, vae: AutoencoderKL, pipe: StableDiffusionXLPipeline
    ) -> None:
        images = on_white(artwork.rgba)
        copies = [encode(vae, images)]
        for _ in range(SHIFTED_VARIANTS):
            shifted = shift_and_scale(images, shift=0.05, smallest=0.85)
            copies.append(encode(vae, shifted))
        device = images.device
        self.latents = torch.stack(copies, dim=1).to(torch.bfloat16)
        self.tokens = caption_tokens(
            artwork.pictures, pipe.tokenizer, variants=CAPTION_VARIANTS
        ).to(device)
        self.empty = empty_tokens(pipe.tokenizer).to(device)

    def draw(self, size: int, progress: float) -> Batch:
        """Draw one batch; `progress` of the run decides how many pictures stand straight."""
        pictures, copies = self.latents.shape[:2]
        device = self.latents.device

        def pick(below: int) -> Tensor:
            return torch.randint(below, (size,), device=device)

        def chance(share: float) -> Tensor:
            return torch.rand(size, device=device) < share

        rows = pick(pictures)
        straight = chance(STRAIGHT_SHARE[progress >= SHARPEN_AT])
        tokens = self.tokens[rows, pick(self.tokens.shape[1])]
        return Batch(
            latents=self.latents[rows, torch.where(straight, 0, pick(copies))].float(),
            tokens=torch.where(chance(EMPTY_CAPTIONS)[:, None], self.empty, tokens),
            keep=(~chance(ZEROED_EMBEDDINGS)).float(),
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
            v = denoiser(noisy, timesteps, drawn.tokens, drawn.keep)
        loss = F.mse_loss(v.float(), target)
        updater.update(loss)
        yield loss.detach()
