"""Where gathered gradients wait until a backward pass ends."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn


class GradientInbox:
    """Adds the gradients that arrive in a backward pass to `values.grad`, all of them at its end.

    `counts` says how many entries of the flat `values` each weight has, one after the other. One
    addition for all weights instead of one for each spares hundreds of launches a step. The
    gradient's memory stays the same for good, also after `zero_grad(set_to_none=True)`, so that
    what a CUDA graph recorded stays valid.
    """

    def __init__(self, values: nn.Parameter, counts: Sequence[int]):
        self._values = values
        self._counts = tuple(counts)
        self._memory = torch.zeros_like(values, requires_grad=False)
        self._arrivals: WeakValueDictionary[int, _Arrivals] = WeakValueDictionary()

    def put(self, number: int, entries: Tensor) -> None:
        """Take the gradient (counts[number],) of the entries of weight `number`, in any dtype.

        Only called during a backward pass. What a second use of the weight brings is added.
        """
        # Reentrant checkpointing runs one pass inside another, so passes are told apart.
        number_of_pass = torch._C._current_graph_task_id()
        arrived = self._arrivals.get(number_of_pass)
        if arrived is None:
            arrived = self._arrivals[number_of_pass] = _Arrivals()
            engine = torch.autograd.Variable._execution_engine
            # The pass alone keeps them alive: if it fails, they go with it.
            engine.queue_callback(partial(self._add, arrived))
        earlier = arrived.get(number)
        arrived[number] = entries if earlier is None else earlier.float() + entries.float()

    def put_all(self, gradients: Sequence[Tensor | None]) -> None:
        """`put` for every weight that has a gradient."""
        for number, entries in enumerate(gradients):
            if entries is not None:
                self.put(number, entries)

    def hold(self) -> Tensor:
        """`values.grad`, which gets its memory back, zeroed, when it is None."""
        if self._values.grad is None:
            self._memory.zero_()
            self._values.grad = self._memory
        return self._values.grad

    @torch.no_grad()
    def _add(self, arrived: _Arrivals) -> None:
        held = self.hold()
        if len(arrived) == len(self._counts):
            held += torch.cat([arrived[number] for number in range(len(self._counts))])
        else:
            parts = held.split(self._counts)
            for number, entries in arrived.items():
                parts[number].add_(entries)


class _Arrivals(dict[int, Tensor]):
    """What one backward pass has brought so far, by the weight's number."""
