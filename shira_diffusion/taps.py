"""Gradients of chosen entries inside compiled code, where no hook can reach.

A hook sees the gradient of a weight only after the compiled backward pass has returned, so the
dense gradients of a whole compiled region would live at once. A tapped layer gathers the entries
in the compiled code itself, which frees each dense gradient as soon as it is read. In eager code a
hook does the same with less work for the host, so there a tapped layer is an ordinary one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


class Tap(NamedTuple):
    """Where the gradient of the entries `indices` (k,) of a weight comes out: at `port` (k,)."""

    indices: Tensor
    port: Tensor

    def __deepcopy__(self, memo: object) -> Tap:
        """A copied layer is tuned by nobody."""
        return Tap(self.indices, self.port.detach())


def open_taps(
    entries: Sequence[Tensor], take: Callable[[Sequence[Tensor | None]], None]
) -> list[Tap]:
    """A tap for each of `entries`; `take` gets the gradients of a backward pass, all at once.

    Weights that no compiled code used have None.
    """
    root = torch.zeros((), device=entries[0].device, requires_grad=True)
    ports = _Ports.apply(root, take, [indices.numel() for indices in entries])
    return [Tap(indices, port) for indices, port in zip(entries, ports, strict=True)]


def aligned(indices: Tensor) -> Tensor:
    """The same indices at an address where compiled code does not copy them each time it runs."""
    return indices if indices.data_ptr() % 16 == 0 else indices.clone()


class _Ports(torch.autograd.Function):
    """Tensors without memory of their own, of which only the gradients count.

    One node of the graph for all of them: the engine calls it once in a pass, when everything has
    arrived, where leaves would have a hook each.
    """

    @staticmethod
    def forward(
        ctx: Any,
        root: Tensor,
        take: Callable[[Sequence[Tensor | None]], None],
        counts: Sequence[int],
    ) -> tuple[Tensor, ...]:
        ctx.take = take
        ctx.set_materialize_grads(False)
        return tuple(root.new_zeros(1).expand(count) for count in counts)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[None, None, None]:
        ctx.take(gradients)
        return None, None, None


class _Gather(torch.autograd.Function):
    """A weight as it is, whose gradient goes to the port of its tap instead."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, indices: Tensor, port: Tensor) -> Tensor:  # noqa: ARG004
        ctx.save_for_backward(indices)
        return weight.view_as(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dense: Tensor) -> tuple[None, None, Tensor]:
        (indices,) = ctx.saved_tensors
        return None, None, dense.reshape(-1).index_select(0, indices).float()


def tapped(weight: Tensor, tap: Tap) -> Tensor:
    """The weight to compute with: the tapped one when compiled, itself in eager code."""
    if not torch.compiler.is_compiling():
        return weight
    return _Gather.apply(weight.detach(), tap.indices, tap.port)


class TunedLinear(nn.Linear):
    """A Linear whose `weight` is tapped."""

    tap: Tap

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        """As `nn.Linear` does."""
        return F.linear(input, tapped(self.weight, self.tap), self.bias)


class TunedConv2d(nn.Conv2d):
    """A Conv2d whose `weight` is tapped."""

    tap: Tap

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        """As `nn.Conv2d` does."""
        return self._conv_forward(input, tapped(self.weight, self.tap), self.bias)


class TunedEmbedding(nn.Embedding):
    """An Embedding whose `weight` is tapped."""

    tap: Tap

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        """As `nn.Embedding` does."""
        return F.embedding(
            input,
            tapped(self.weight, self.tap),
            self.padding_idx,
            self.max_norm,
            self.norm_type,
            self.scale_grad_by_freq,
            self.sparse,
        )


Tuned = TunedLinear | TunedConv2d | TunedEmbedding
_TUNED: dict[type[nn.Module], type[Tuned]] = {
    nn.Linear: TunedLinear,
    nn.Conv2d: TunedConv2d,
    nn.Embedding: TunedEmbedding,
}
_PLAIN = {tuned: plain for plain, tuned in _TUNED.items()}


def attach(module: nn.Module, taps: Mapping[nn.Parameter, Tap]) -> list[Tuned]:
    """Tap the layers of `module` whose `weight` is among `taps`, in place; returns them.

    A layer changes its class and nothing else: its names, its state dict and its hooks stay. Layers
    of other classes, and those whose `forward` someone else has replaced, are left to hooks.
    """
    attached: list[Tuned] = []
    for layer in module.modules():
        tuned = _TUNED.get(type(layer))
        if tuned is None or "forward" in vars(layer):
            continue
        tap = taps.get(layer.get_parameter("weight"))
        if tap is not None:
            layer.__class__ = tuned
            assert isinstance(layer, Tuned)
            layer.tap = tap
            attached.append(layer)
    return attached


def detach(layers: Sequence[Tuned]) -> None:
    """Give tapped layers their own class back."""
    for layer in layers:
        del layer.tap
        layer.__class__ = _PLAIN[type(layer)]  # type: ignore[assignment]
