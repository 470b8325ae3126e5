"""Stage one: the autoencoder of latent diffusion (https://arxiv.org/abs/2112.10752), no critic."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor

from emoji_xl.architecture import Size, build_vae
from emoji_xl.clock import Clock
from emoji_xl.data import Artwork, on_grounds, on_white, shift_and_scale, vary_colours
from emoji_xl.updater import Updater

PEAK_RATE = 2e-3
KL_WEIGHT = 1e-6
EDGE_WEIGHT = 0.5


def edges(images: Tensor) -> tuple[Tensor, Tensor]:
    """Differences between neighbouring pixels, across and down."""
    return images[..., :, 1:] - images[..., :, :-1], images[..., 1:, :] - images[..., :-1, :]


def reconstruction_loss(restored: Tensor, images: Tensor) -> Tensor:
    """L1 + L2 + L1 of the edges: flat colours with sharp borders need all three."""
    across, down = edges(images)
    restored_across, restored_down = edges(restored)
    edge = F.l1_loss(restored_across, across) + F.l1_loss(restored_down, down)
    return F.l1_loss(restored, images) + F.mse_loss(restored, images) + EDGE_WEIGHT * edge


def batch_of(artwork: Artwork, size: int) -> Tensor:
    """Draw augmented pictures (size, 3, H, W) in [-1, 1]."""
    device = artwork.rgba.device
    rgba = artwork.rgba[torch.randint(len(artwork.rgba), (size,), device=device)]
    images = vary_colours(on_grounds(rgba, white=0.7))
    return shift_and_scale(images, shift=0.06, smallest=0.7)


def vae_updater(size: Size, device: torch.device, clock: Clock) -> Updater[AutoencoderKL]:
    """Build an untrained autoencoder and its optimizer; the same weights every time."""
    torch.manual_seed(0)
    vae = build_vae(size).to(device, memory_format=torch.channels_last)
    return Updater(vae, clock, peak=PEAK_RATE, decay=0.995, warmup=100)


def train_vae(
    updater: Updater[AutoencoderKL], artwork: Artwork, *, batch: int, compiled: bool
) -> Iterator[Tensor]:
    """Yield the loss after every step until time is out; the latents are not normalised yet."""
    vae = updater.module
    device = artwork.rgba.device
    torch.manual_seed(updater.step)

    def loss_of(images: Tensor) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16):
            mean, log_variance = vae.quant_conv(vae.encoder(images)).float().chunk(2, dim=1)
            sample = mean + (0.5 * log_variance).exp() * torch.randn_like(mean)
            restored = vae.decoder(vae.post_quant_conv(sample))
        kl = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).sum(dim=(1, 2, 3)).mean()
        return reconstruction_loss(restored.float(), images) + KL_WEIGHT * kl

    step_loss = torch.compile(loss_of) if compiled else loss_of
    while updater.running:
        images = batch_of(artwork, batch).contiguous(memory_format=torch.channels_last)
        loss = step_loss(images)
        updater.update(loss)
        yield loss.detach()


@torch.no_grad()
def encode(vae: AutoencoderKL, images: Tensor, *, batch: int = 256) -> Tensor:
    """Latent means (N, 4, H/4, W/4) of images in [-1, 1]."""
    return torch.cat([vae.encode(part).latent_dist.mode() for part in images.split(batch)])


@torch.no_grad()
def normalise_latents(vae: AutoencoderKL, artwork: Artwork) -> None:
    """Fold the latents' mean and deviation into the 1x1 convolutions at the bottleneck.

    Afterwards each latent channel has mean 0 and deviation 1 over the artwork, and scaling_factor
    stays 1.
    """
    latents = encode(vae, on_white(artwork.rgba)).float()
    mean, std = latents.mean(dim=(0, 2, 3)), latents.std(dim=(0, 2, 3))
    quant, post = vae.quant_conv, vae.post_quant_conv
    channels = len(mean)
    post.bias += post.weight[:, :, 0, 0] @ mean
    post.weight *= std[None, :, None, None]
    quant.bias[:channels] -= mean
    quant.bias[:channels] /= std
    quant.weight[:channels] /= std[:, None, None, None]
    quant.bias[channels:] -= 2 * std.log()


@torch.no_grad()
def psnr(vae: AutoencoderKL, images: Tensor, *, batch: int = 256) -> float:
    """Peak signal-to-noise ratio of reconstructions in dB, for images in [-1, 1]."""
    errors = [
        F.mse_loss(vae.decode(encode(vae, part)).sample.clamp(-1, 1), part, reduction="none")
        for part in images.split(batch)
    ]
    return float(10 * torch.log10(4 / torch.cat(errors).mean()))
