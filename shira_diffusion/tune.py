"""Train chosen entries of a module's weights in place, and nothing else.

The base weights stay ordinary parameters: no wrapper, no extra matmul, unchanged names. This
is the memory-efficient training of Sparse High Rank Adapters, arXiv 2406.13175.
"""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from shira_diffusion import taps
from shira_diffusion.components import unwrapped
from shira_diffusion.delta import VALUE_DTYPES, SparseDelta, check_indices
from shira_diffusion.errors import DeltaError, MismatchError, SettingError, ShiraError, nearest
from shira_diffusion.inbox import GradientInbox
from shira_diffusion.places import Places, WeightTable
from shira_diffusion.scatter import read, read_many, write_many


@dataclass(frozen=True, eq=False)
class _Layer:
    """One tuned weight and its entries."""

    name: str
    weight: nn.Parameter
    indices: Tensor


@dataclass(eq=False)
class _Group:
    """The tuned weights of one dtype: their entries, base values and part of the flat vector."""

    table: WeightTable
    places: Places
    base: Tensor
    part: slice

    def refresh(self) -> None:
        """Find the weights again if their memory was replaced."""
        if self.table.is_current():
            return
        table = WeightTable(self.table.weights)
        if (table.device, table.dtype) != (self.table.device, self.table.dtype):
            raise MismatchError(
                f"the tuned weights are {table.dtype} on {table.device} now, but were "
                f"{self.table.dtype} on {self.table.device} when SparseTuner was made; move the "
                "module back as it was"
            )
        self.table = table


class SparseTuner:
    """One flat fp32 vector of the chosen entries of all weights, for any torch optimizer.

    `indices` maps names of `module.named_parameters()` to flat indices as in `SparseDelta`.
    `values` (nnz,) holds the weights' entries themselves, not their change, so that training in
    fp32 equals dense training with masked gradients bit for bit; weight decay must be 0, since it
    would pull at the entries and not at the change.

    A weight's dense gradient lives until its entries are gathered; all of them reach
    `values.grad` when the backward pass ends. It is the one thing that several processes have to
    reduce; DistributedDataParallel around the module would reduce dense gradients instead. Call
    `write` after each optimizer step: fp16 and bf16 weights get the nearest number to their entry
    of `values`, so steps too small for them add up there and show in time.

    All other parameters are frozen until `close`, which puts base values and `requires_grad` flags
    back. Move the module before, not while, it is tuned; compile it before or after.
    """

    def __init__(self, module: nn.Module, indices: Mapping[str, Tensor]):
        self._module = unwrapped(module)
        if any(isinstance(part, taps.Tuned) for part in self._module.modules()):
            raise MismatchError("this module is being tuned already; close its SparseTuner first")
        self._layers = _layers(dict(self._module.named_parameters()), indices)
        self._groups = _groups(self._layers)
        self.values = nn.Parameter(torch.cat([group.base.float() for group in self._groups]))
        self._counts = [layer.indices.numel() for layer in self._layers]
        self._inbox = GradientInbox(self.values, self._counts)
        self._flags = [(weight, weight.requires_grad) for weight in self._module.parameters()]
        self._module.requires_grad_(False)
        hooks = [self._watch(number) for number in range(len(self._layers))]
        opened = taps.open_taps([layer.indices for layer in self._layers], self._inbox.put_all)
        weights = [layer.weight for layer in self._layers]
        tapped = taps.attach(self._module, dict(zip(weights, opened, strict=True)))
        # A tuner that nobody holds any more stops watching, too, though it leaves its values.
        self._unwatch = weakref.finalize(self, _unwatch, hooks, tapped)
        self._open = True

    @property
    def indices(self) -> Mapping[str, Tensor]:
        """The tuned entries of every weight, in the order in which they lie in `values`.

        That is by name, and by dtype before that where weights of several dtypes are tuned.
        """
        return {layer.name: layer.indices for layer in self._layers}

    def parameters(self) -> list[nn.Parameter]:
        """What an optimizer gets: the one flat vector."""
        return [self.values]

    def write(self) -> None:
        """Bring the live weights up to date with `values`, rounded to the weights' dtype.

        Raises `MismatchError` when the module is on another device or in another dtype now.
        """
        if not self._open:
            raise ShiraError("this SparseTuner is closed and the base is back; make a new one")
        values = self.values.detach()
        self._put([values[group.part].to(group.table.dtype) for group in self._groups])

    def hold_gradient(self) -> Tensor:
        """`values.grad` (nnz,), zeros if it was None: always the same memory.

        A CUDA graph that records a backward pass adds to it, see `shira_diffusion.captured`.
        """
        return self._inbox.hold()

    def deltas(self) -> dict[str, SparseDelta]:
        """What was learned so far: `values` less the base, in fp32.

        Raises `DeltaError` when the training has diverged.
        """
        base = torch.cat([group.base.float() for group in self._groups])
        parts = (self.values.detach() - base).split(self._counts)
        changes = {}
        for layer, change in zip(self._layers, parts, strict=True):
            shape = tuple(layer.weight.shape)
            try:
                changes[layer.name] = SparseDelta(layer.indices, change.clone(), shape)
            except DeltaError as error:
                raise DeltaError(f"the training of {layer.name!r} failed: {error}") from error
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
        self._put([group.base for group in self._groups])
        self._open = False
        self._unwatch()
        for layer in self._layers:
            layer.weight.grad = None
        for weight, flag in self._flags:
            weight.requires_grad_(flag)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _watch(self, number: int) -> RemovableHandle:
        """Gather the gradient of a weight, and free it, as soon as it is there."""
        layer, inbox = self._layers[number], self._inbox
        layer.weight.grad = None
        layer.weight.requires_grad_(True)

        def gather(weight: Tensor) -> None:
            # Compiled code gives a tapped weight no gradient, and its hook is called all the same.
            if weight.grad is None:
                return
            dense = weight.grad.to_dense() if weight.grad.is_sparse else weight.grad
            inbox.put(number, read(dense, layer.indices))
            weight.grad = None

        return layer.weight.register_post_accumulate_grad_hook(gather)

    def _put(self, values: Sequence[Tensor]) -> None:
        """Write all groups' values, or none when a weight has gone elsewhere."""
        for group in self._groups:
            group.refresh()
        for group, part in zip(self._groups, values, strict=True):
            write_many(group.table, group.places, part)

    def _layout(self) -> str:
        digest = hashlib.sha256()
        bases = (part for group in self._groups for part in group.places.split(group.base))
        for layer, base in zip(self._layers, bases, strict=True):
            indices = layer.indices
            digest.update(f"{layer.name}:{tuple(layer.weight.shape)}:{indices.numel()};".encode())
            for content in (indices, base):
                digest.update(content.cpu().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()


def _unwatch(hooks: Sequence[RemovableHandle], tapped: Sequence[taps.Tuned]) -> None:
    for hook in hooks:
        hook.remove()
    taps.detach(tapped)


def _layers(named: Mapping[str, nn.Parameter], indices: Mapping[str, Tensor]) -> list[_Layer]:
    """Every tuned weight, by dtype and name, checked before anything is changed."""
    if not indices:
        raise SettingError("there is no weight to train; give indices of at least one")
    layers = []
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
        layers.append(_Layer(name, weight, taps.aligned(entries.to(weight.device))))
    devices = {layer.weight.device for layer in layers}
    if len(devices) > 1:
        raise MismatchError(f"the weights lie on several devices, {sorted(map(str, devices))}")
    return sorted(layers, key=_dtype)


def _groups(layers: Sequence[_Layer]) -> list[_Group]:
    groups: list[_Group] = []
    start = 0
    for _, same in groupby(layers, key=_dtype):
        members = list(same)
        table = WeightTable([layer.weight for layer in members])
        places = Places.join([layer.indices for layer in members])
        stop = start + places.indices.numel()
        groups.append(_Group(table, places, read_many(table, places), slice(start, stop)))
        start = stop
    return groups


def _dtype(layer: _Layer) -> str:
    return str(layer.weight.dtype)
