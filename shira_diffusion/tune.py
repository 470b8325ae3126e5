"""Train chosen entries of a module's weights in place, and nothing else.

The base weights stay ordinary parameters: no wrapper, no extra matmul, unchanged names. This
is the memory-efficient training of Sparse High Rank Adapters, arXiv 2406.13175.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from shira_diffusion.components import unwrapped
from shira_diffusion.delta import VALUE_DTYPES, SparseDelta, check_indices
from shira_diffusion.errors import DeltaError, MismatchError, SettingError, ShiraError, nearest
from shira_diffusion.scatter import read, write


@dataclass(frozen=True, eq=False)
class _Layer:
    """One tuned weight, its entries, their base values, and where they lie in the flat vector."""

    weight: nn.Parameter
    indices: Tensor
    base: Tensor
    part: slice


class SparseTuner:
    """One flat fp32 vector of the chosen entries of all weights, for any torch optimizer.

    `indices` maps names of `module.named_parameters()` to flat indices as in `SparseDelta`.
    `values` (nnz,) holds the weights' entries themselves, not their change, so that training in
    fp32 equals dense training with masked gradients bit for bit; weight decay must be 0, since it
    would pull at the entries and not at the change.

    A weight's dense gradient lives until its entries are added to `values.grad`. Call `write`
    after each optimizer step. All other parameters are frozen until `close`, which puts base
    values and `requires_grad` flags back. Move the module before, not while, it is tuned.
    """

    def __init__(self, module: nn.Module, indices: Mapping[str, Tensor]):
        self._module = unwrapped(module)
        self._layers = _layers(dict(self._module.named_parameters()), indices)
        masters = [layer.base.float() for layer in self._layers.values()]
        self.values = nn.Parameter(torch.cat(masters))
        self._flags = [(weight, weight.requires_grad) for weight in self._module.parameters()]
        self._module.requires_grad_(False)
        self._hooks = [self._watch(layer) for layer in self._layers.values()]
        self._open = True

    @property
    def indices(self) -> Mapping[str, Tensor]:
        """The tuned entries of every weight, by name in sorted order, as they lie in `values`."""
        return {name: layer.indices for name, layer in self._layers.items()}

    def parameters(self) -> list[nn.Parameter]:
        """What an optimizer gets: the one flat vector."""
        return [self.values]

    def write(self) -> None:
        """Bring the live weights up to date with `values`, rounded to the weights' dtype."""
        self._require_open()
        for layer in self._layers.values():
            write(layer.weight, layer.indices, self._part(layer).to(layer.weight.dtype))

    def deltas(self) -> dict[str, SparseDelta]:
        """What was learned so far: `values` less the base, in fp32.

        Raises `DeltaError` when the training has diverged.
        """
        changes = {}
        for name, layer in self._layers.items():
            change = self._part(layer) - layer.base.float()
            try:
                changes[name] = SparseDelta(layer.indices, change, tuple(layer.weight.shape))
            except DeltaError as error:
                raise DeltaError(f"the training of {name!r} failed: {error}") from error
        return changes

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs to go on: a copy of `values`, and what they belong to."""
        return {"values": self.values.detach().clone(), "layout": self._layout()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken, the live weights included.

        Raises `MismatchError` when it was taken with other weights, entries or base values.
        """
        values = state.get("values")
        if state.get("layout") != self._layout() or not isinstance(values, Tensor):
            raise MismatchError(
                "this training state belongs to another base, mask or set of weights; resume with "
                "the settings it was started with, or start anew"
            )
        with torch.no_grad():
            self.values.copy_(values)
        self.write()

    def close(self) -> None:
        """Put base values and `requires_grad` flags back and stop watching; may be called twice."""
        if not self._open:
            return
        self._open = False
        for hook in self._hooks:
            hook.remove()
        for layer in self._layers.values():
            layer.weight.grad = None
            write(layer.weight, layer.indices, layer.base)
        for weight, flag in self._flags:
            weight.requires_grad_(flag)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _watch(self, layer: _Layer) -> RemovableHandle:
        layer.weight.grad = None
        layer.weight.requires_grad_(True)

        def gather(weight: Tensor) -> None:
            assert weight.grad is not None
            entries = read(weight.grad, layer.indices).float()
            weight.grad = None
            if self.values.grad is None:
                self.values.grad = torch.zeros_like(self.values)
            self.values.grad[layer.part] += entries

        return layer.weight.register_post_accumulate_grad_hook(gather)

    def _part(self, layer: _Layer) -> Tensor:
        return self.values.detach()[layer.part]

    def _layout(self) -> str:
        digest = hashlib.sha256()
        for name, layer in self._layers.items():
            digest.update(f"{name}:{tuple(layer.weight.shape)}:{layer.indices.numel()};".encode())
            for content in (layer.indices, layer.base):
                digest.update(content.cpu().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def _require_open(self) -> None:
        if not self._open:
            raise ShiraError("this SparseTuner is closed and the base is back; make a new one")


def _layers(named: Mapping[str, nn.Parameter], indices: Mapping[str, Tensor]) -> dict[str, _Layer]:
    """Every tuned weight in sorted order, checked before anything is changed."""
    if not indices:
        raise SettingError("there is no weight to train; give indices of at least one")
    layers: dict[str, _Layer] = {}
    start = 0
    for name, entries in sorted(indices.items()):
        weight = named.get(name)
        if weight is None:
            raise MismatchError(f"the module has no weight {name!r} ({nearest(name, named)})")
        if weight.is_meta or weight.dtype not in VALUE_DTYPES:
            raise MismatchError(
                f"the weight {name!r} is {weight.dtype} on {weight.device}; it must be fp16, bf16 "
                "or fp32 on a device that holds its data"
            )
        try:
            check_indices(entries, weight.numel())
        except DeltaError as error:
            raise DeltaError(f"the entries to train in {name!r}: {error}") from error
        here = entries.to(weight.device)
        part = slice(start, start + here.numel())
        layers[name] = _Layer(weight, here, read(weight, here), part)
        start = part.stop
    devices = {layer.weight.device for layer in layers.values()}
    if len(devices) > 1:
        raise MismatchError(f"the weights lie on several devices, {sorted(map(str, devices))}")
    return layers
