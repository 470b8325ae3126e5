"""LoRA Composite of arXiv 2402.16843 for adapters in the weights: noise predictions, averaged."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from shira_diffusion.errors import SettingError
from shira_diffusion.switch import AdapterSwitcher


@contextmanager
def composite(
    switcher: AdapterSwitcher, module: nn.Module, mixes: Sequence[Mapping[str, float]]
) -> Iterator[None]:
    """Within the block each call of `module` returns the mean of its outputs under each mix.

    `module` is what predicts the noise, a pipeline's `unet`, compiled or not; it runs once for
    every mix. No adapter meets another in one forward pass, so none can drown another. All other
    components see the first mix. The lease is that of `AdapterSwitcher.using`. Raises
    `SettingError` when the module returns anything but a tensor or a tuple of tensors.
    """
    if not mixes:
        raise SettingError("there is nothing to compose; give at least one mix")

    def average(_: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        outputs = [output]
        for mix in mixes[1:]:
            switcher.set(mix)
            outputs.append(module.forward(*args, **kwargs))
        switcher.set(mixes[0])
        return _mean(outputs)

    switcher.prefetch(*{name for mix in mixes for name in mix})
    with switcher.using(mixes[0]):
        hook = module.register_forward_hook(average, with_kwargs=True)
        try:
            yield
        finally:
            hook.remove()


def _mean(outputs: Sequence[Any]) -> Any:
    """The mean of tensors, or of each place of tuples of them; (…) as one output."""
    first = outputs[0]
    if isinstance(first, Tensor):
        return torch.stack(list(outputs)).mean(0)
    if type(first) is tuple:
        return tuple(_mean(place) for place in zip(*outputs, strict=True))
    raise SettingError(
        f"a composite needs a module that returns tensors, not a {type(first).__name__}; call it "
        "with return_dict=False"
    )
