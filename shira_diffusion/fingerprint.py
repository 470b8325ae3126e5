"""Tell one base model from another, in whatever precision it was loaded."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from shira_diffusion.components import plain_name, unwrapped
from shira_diffusion.scatter import read

# A fine-tuned copy of a base flips the sign of some weights near zero. With 64 of each of SDXL's
# 1,680 weights, a copy that flips one in 10,000 is taken for the original once in 40,000 times.
_SAMPLES = 64


def fingerprint(module: nn.Module) -> str:
    """SHA-256 (hex) of the names and shapes of all weights and of the signs of some entries.

    Signs survive rounding, so fp32, fp16 and bf16 copies of one base have one fingerprint, while
    other training has another. The entries are spread evenly over each weight.
    """
    named = dict(unwrapped(module).named_parameters())
    return fingerprint_of(named, named.__getitem__)


def fingerprint_of(names: Iterable[str], read_weight: Callable[[str], Tensor]) -> str:
    """`fingerprint` of weights that lie elsewhere: their names in the module, and how to get one.

    One weight is asked for at a time.
    """
    digest = hashlib.sha256()
    signs = []
    for name, full in sorted((plain_name(full), full) for full in names):
        weight = read_weight(full)
        digest.update(f"{name}:{tuple(weight.shape)};".encode())
        if weight.is_floating_point():
            signs.append(_signs(weight))
    if signs:
        digest.update(torch.cat(signs).cpu().numpy().tobytes())
    return digest.hexdigest()


def _signs(weight: Tensor) -> Tensor:
    last, taken = weight.numel() - 1, min(_SAMPLES, weight.numel())
    places = torch.arange(taken, device=weight.device) * last // max(taken - 1, 1)
    return torch.signbit(read(weight, places).float())
