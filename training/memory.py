"""How much memory a run will need, found out by a training step that computes no number."""

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import StableDiffusionXLPipeline
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import CLIPTextModel

from training.batches import Batch
from training.config import Config
from training.encode import encode_pixels
from training.methods import Trainable
from training.objective import Objective
from training.optimizers import state_bytes

_TIME_IDS = 6


@dataclass(frozen=True)
class Footprint:
    """Bytes on the device while the images are encoded and, afterwards, while steps are done."""

    unet: int
    texts: int  # text encoders that train, and what they hold of a batch's captions
    encoders: int  # VAE in fp32 and both text encoders
    encoding: int  # the VAE's intermediate results for one image
    values: int  # trained values, their gradients and the optimizer's state
    step: int  # what forward and backward of one batch hold at their peak

    @property
    def preparing(self) -> int:
        """The peak while the images are encoded."""
        return self.encoders + self.encoding

    @property
    def training(self) -> int:
        """The peak of a training step."""
        return self.unet + self.texts + self.values + self.step


class PeakMemory(TorchDispatchMode):
    """Counts the bytes of tensors made in the block: `now` alive, `peak` at most.

    Those of `known` tensors and of views into them are not counted.
    """

    def __init__(self, known: Sequence[Tensor]) -> None:
        super().__init__()
        self.now = 0
        self.peak = 0
        self._known = known  # alive, so that no other storage gets the place of one of theirs
        self._alive = {tensor.untyped_storage()._cdata: 0 for tensor in known}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call `func` and count the storages that its results brought into being."""
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._count(leaf.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._alive:
            return
        self._alive[key] = storage.nbytes()
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.now -= self._alive.pop(key)


def footprint(
    pipe: StableDiffusionXLPipeline,
    method: Trainable,
    objective: Objective,
    config: Config,
    *,
    count: int,
    size: tuple[int, int],
) -> Footprint:
    """Return what a run of `method` needs for batches of `count` pictures of (height, width).

    The step runs on tensors without storage (https://docs.pytorch.org/docs/stable/torch.compiler_fake_tensor.html):
    every allocation is known, nothing is computed. Kernels' workspaces are not in it. `objective`
    is one of kept texts.
    """
    encoders = (pipe.text_encoder, pipe.text_encoder_2)
    fp32_vae = sum(weight.numel() for weight in pipe.vae.parameters()) * 4
    return Footprint(
        unet=_bytes(pipe.unet),
        texts=sum(_texts(encoder, count) for encoder in encoders) if config.texts_train else 0,
        encoders=fp32_vae + sum(_bytes(encoder) for encoder in encoders),
        encoding=_encoding_peak(pipe, size),
        values=sum(_values(value, config) for value in method.parameters()),
        step=_step_peak(pipe, method, objective, count, size),
    )


def _values(value: Tensor, config: Config) -> int:
    """Count a value, its gradient, its average and the optimizer's state."""
    copies = 3 if config.ema else 2
    return copies * value.nbytes + state_bytes(config.optimizer, value)


def _texts(encoder: CLIPTextModel, count: int) -> int:
    """Count a text encoder and what it holds until its gradients are there."""
    tokens = encoder.config.max_position_embeddings
    with _without_storage(encoder) as memory:
        read = encoder(torch.zeros(count, tokens, dtype=torch.int64), output_hidden_states=True)
        held = memory.now
        del read
    return _bytes(encoder) + held


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


def _bytes(module: nn.Module) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in _tensors(module))


@contextmanager
def _without_storage(module: nn.Module) -> Iterator[PeakMemory]:
    """Compute nothing in the block, but count what computing with `module` would allocate."""
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        known = [mode.from_tensor(tensor) for tensor in _tensors(module)]
        with PeakMemory(known) as memory:
            yield memory


def _step_peak(
    pipe: StableDiffusionXLPipeline,
    method: Trainable,
    objective: Objective,
    count: int,
    size: tuple[int, int],
) -> int:
    with _without_storage(pipe.unet) as memory:
        objective.loss(_blank(pipe, count, size)).backward()
    for values in method.parameters():
        values.grad = None
    return memory.peak


def _encoding_peak(pipe: StableDiffusionXLPipeline, size: tuple[int, int]) -> int:
    dtype = next(pipe.vae.parameters()).dtype
    with torch.no_grad(), _without_storage(pipe.vae) as memory:
        encode_pixels(pipe.vae, torch.empty(3, *size, dtype=dtype))
    return memory.peak * torch.float32.itemsize // dtype.itemsize


def _blank(pipe: StableDiffusionXLPipeline, count: int, size: tuple[int, int]) -> Batch:
    """Return a batch of the shapes that the UNet of `pipe` takes."""
    config = pipe.unet.config
    latents = (count, config.in_channels, *(length // pipe.vae_scale_factor for length in size))
    pooled = config.projection_class_embeddings_input_dim
    pooled -= _TIME_IDS * config.addition_time_embed_dim
    tokens = pipe.tokenizer.model_max_length
    return Batch(
        latents=torch.empty(latents),
        noise=torch.empty(latents),
        timesteps=torch.zeros(count, dtype=torch.int64),
        prompt_embeds=torch.empty(count, tokens, config.cross_attention_dim),
        pooled=torch.empty(count, pooled),
        time_ids=torch.empty(count, _TIME_IDS),
        weights=torch.empty(count),
    )
