"""Latents and text embeddings of the training images, computed once and kept on disk."""

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import torch
from diffusers import AutoencoderKL, StableDiffusionXLPipeline
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from shira_diffusion.fingerprint import fingerprint
from training.data import CaptionedImage
from training.images import Framing, open_image, to_pixels
from training.loss_masks import read_mask, shares
from training.views import View


@dataclass(frozen=True, eq=False)
class Example:
    """One view of an image as the UNet's training wants it, fp32 on the CPU."""

    latents: Tensor  # (4, h, w), normalised as the UNet sees them
    prompt_embeds: Tensor  # (tokens, width of both text encoders)
    pooled: Tensor  # (width of the second text encoder,)
    time_ids: Tensor  # (6,)
    others: tuple["Example", ...] = ()  # the image's other views, of the same shapes
    caption: str = ""
    shares: Tensor | None = None  # (1, h, w), how much each place counts; None is all alike


@dataclass(frozen=True)
class TensorCache:
    """A folder of small tensor files, keyed by a hash of all that they depend on."""

    folder: Path

    def get(self, key: str, compute: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """Return what was stored under `key`, else compute and store it."""
        path = self.folder / f"{hashlib.sha256(key.encode()).hexdigest()}.safetensors"
        if path.is_file():
            return load_file(path)
        tensors = {name: tensor.contiguous() for name, tensor in compute().items()}
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{uuid4().hex}.partial")
        save_file(tensors, partial)
        partial.replace(path)
        return tensors


class Encoder:
    """Turns captioned images into examples with a base's VAE and text encoders.

    Without `texts` the captions are left to the training, which encodes them anew in each step.
    What a mask leaves out counts `unmasked`.
    """

    def __init__(
        self,
        pipe: StableDiffusionXLPipeline,
        cache: TensorCache,
        *,
        own_sizes: bool = True,
        texts: bool = True,
        unmasked: float = 1.0,
    ) -> None:
        self._pipe = pipe
        self._cache = cache
        self._own_sizes = own_sizes
        self._texts = texts
        self._unmasked = unmasked
        self._vae_key = _identity(pipe.vae)
        self._text_key = f"{_identity(pipe.text_encoder)}/{_identity(pipe.text_encoder_2)}"

    def encode(
        self,
        images: Sequence[tuple[CaptionedImage, tuple[View, ...]]],
        on_done: Callable[[int], None],
    ) -> list[Example]:
        """Return an example of each image, from the cache where it is there already.

        It is that of the first of the image's views, and has those of the others with it.
        `on_done` is told how many images are done.
        """
        made: dict[tuple[CaptionedImage, tuple[View, ...]], Example] = {}
        with _in_fp32(self._pipe.vae):
            for done, (image, views) in enumerate(images, start=1):
                if (image, views) not in made:
                    first, *others = (self._example(image, view) for view in views)
                    made[image, views] = dataclasses.replace(first, others=tuple(others))
                on_done(done)
        return [made[pair] for pair in images]

    def _example(self, image: CaptionedImage, view: View) -> Example:
        picture = self._cache.get(
            f"latents/{self._vae_key}/{view}/{image.digest}", lambda: self._picture(image, view)
        )
        prompt_embeds, pooled = self._embeddings(image.caption)
        return Example(
            normalise(self._pipe.vae, picture["latents"]),
            prompt_embeds,
            pooled,
            picture["time_ids"] if self._own_sizes else time_ids(Framing.plain(view.size)),
            caption=image.caption,
            shares=self._shares(image, view, picture["latents"]),
        )

    def _embeddings(self, caption: str) -> tuple[Tensor, Tensor]:
        if not self._texts:
            return torch.empty(0), torch.empty(0)
        text = self._cache.get(f"text/{self._text_key}/{caption}", lambda: self._text(caption))
        return text["prompt_embeds"], text["pooled"]

    def _shares(self, image: CaptionedImage, view: View, latents: Tensor) -> Tensor | None:
        if image.mask is None:
            return None
        mask = read_mask(image.path, image.mask, image.size)
        return shares(view.of(mask)[0], latents, self._unmasked)

    @torch.no_grad()
    def _picture(self, image: CaptionedImage, view: View) -> dict[str, Tensor]:
        picture, framing = view.of(open_image(image.path))
        return {
            "latents": encode_pixels(self._pipe.vae, to_pixels(picture)),
            "time_ids": time_ids(framing),
        }

    @torch.no_grad()
    def _text(self, caption: str) -> dict[str, Tensor]:
        embeds, _, pooled, _ = self._pipe.encode_prompt(caption, do_classifier_free_guidance=False)
        return {"prompt_embeds": embeds[0].float().cpu(), "pooled": pooled[0].float().cpu()}


def _identity(module: nn.Module) -> str:
    """Name a module's weights in the dtype that it computes in."""
    return f"{fingerprint(module)}/{next(module.parameters()).dtype}"


@contextmanager
def _in_fp32(vae: AutoencoderKL) -> Iterator[None]:
    """Compute the block's latents in fp32 whatever the VAE's dtype: SDXL's overflows in fp16."""
    dtype = next(vae.parameters()).dtype
    if dtype == torch.float32:
        yield
        return
    try:
        vae.to(dtype=torch.float32)
        yield
    finally:
        vae.to(dtype=dtype)


def encode_pixels(vae: AutoencoderKL, pixels: Tensor) -> Tensor:
    """Return the mean latents (4, h, w) of pixels (3, H, W) in [-1, 1], not yet normalised."""
    device = next(vae.parameters()).device
    return vae.encode(pixels[None].to(device)).latent_dist.mode()[0].cpu()


def normalise(vae: AutoencoderKL, latents: Tensor) -> Tensor:
    """Bring latents (4, h, w) to the UNet's scale: the inverse of what SDXL's pipeline decodes."""
    mean = getattr(vae.config, "latents_mean", None)
    std = getattr(vae.config, "latents_std", None)
    scaling = vae.config.scaling_factor
    if mean is None or std is None:
        return latents * scaling
    return (latents - column(mean)) * scaling / column(std)


def column(values: Sequence[float]) -> Tensor:
    """Return per-channel numbers as (channels, 1, 1)."""
    return torch.tensor(values).view(-1, 1, 1)


def time_ids(framing: Framing) -> Tensor:
    """Return the six size numbers as the UNet takes them."""
    return torch.tensor(framing.time_ids, dtype=torch.float32)
