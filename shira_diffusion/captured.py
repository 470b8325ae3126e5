"""A training step's forward and backward pass as one CUDA graph, for hosts that launch slowly."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from shira_diffusion.errors import CaptureError, SettingError, ShiraError

_WARMUPS = 3
# Atomic additions come in another order each time; a wrong graph is wrong by far more.
_TOLERANCE = 0.05
# Optimizers read gradients that start at such multiples at full width.
_ALIGNED = 64


class Gradients(Protocol):
    """Keeps the memory that backward passes add their gradients to; a `SparseTuner` does."""

    def hold_gradient(self) -> Tensor:
        """All gradients (n,), zeros where they were None: always the same memory."""


class HeldGradients:
    """Keeps the gradients of parameters, such as a LoRA's factors, in one flat vector for good.

    Their `.grad` are views of it, also after `zero_grad(set_to_none=True)`, so that what a CUDA
    graph recorded stays valid. Raises `SettingError` for parameters of several dtypes or devices.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]):
        kinds = {(parameter.dtype, parameter.device) for parameter in parameters}
        if len(kinds) != 1:
            raise SettingError(
                "gradients are held together for parameters of one dtype on one device, not for "
                f"{sorted(map(str, kinds))}"
            )
        self._parameters = list(parameters)
        counts = [-(-one.numel() // _ALIGNED) * _ALIGNED for one in parameters]
        ((dtype, device),) = kinds
        self._memory = torch.zeros(sum(counts), dtype=dtype, device=device)
        self._parts = [
            part.as_strided(one.shape, one.stride())
            for one, part in zip(parameters, self._memory.split(counts), strict=True)
        ]

    def hold_gradient(self) -> Tensor:
        """All gradients (n,), zeros where they were None, and between them for alignment."""
        away = [
            (parameter, part)
            for parameter, part in zip(self._parameters, self._parts, strict=True)
            if parameter.grad is not part
        ]
        if len(away) == len(self._parts) and all(one.grad is None for one, _ in away):
            self._memory.zero_()  # one launch for all
        for parameter, part in away:
            if parameter.grad is not None:
                part.copy_(parameter.grad)
            elif len(away) < len(self._parts):
                part.zero_()
            parameter.grad = part
        return self._memory


class CapturedPass:
    """Replays `loss(**inputs)` and its backward pass without the host's work in between.

    `inputs` are tensors on the CUDA device of what is trained; every call brings others of the same
    shapes, and adds to the held gradient (a `SparseTuner`'s, or that of `HeldGradients`) as a
    backward pass does. What is trained stays where it is, so the optimizer and `tuner.write` follow
    each call as ever. What `loss` computes must not depend on data by way of the host (no
    `.item()`), and checkpointing needs `preserve_rng_state=False`. Compile the module before;
    capture again once it was moved. Passes of several shapes share memory when each but the first
    is made `beside` one of them. `then` follows each backward pass in the graph, for what brings
    gradients on to where they are held.

    Raises `SettingError` when there is nothing that CUDA could capture, and `CaptureError` when
    capturing failed or gives other numbers than the pass itself: then train without. Memory that
    the graphs of other shapes keep is not there for the passes that come before a capture, so that
    these may run out of it where training without would not.
    """

    def __init__(
        self,
        gradients: Gradients,
        loss: Callable[..., Tensor],
        inputs: Mapping[str, Tensor],
        *,
        then: Callable[[], None] = lambda: None,
        beside: CapturedPass | None = None,
    ):
        self._gradients = gradients
        self._gradient = gradients.hold_gradient()
        device = self._gradient.device
        devices = {device, *(tensor.device for tensor in inputs.values())}
        if len(devices) > 1 or device.type != "cuda":
            raise SettingError(
                f"a CUDA graph needs module and inputs on one CUDA device, got "
                f"{sorted(map(str, devices))}; move them there, or train without CapturedPass"
            )
        self._function = loss
        self._then = then
        self._inputs = {name: tensor.detach().clone() for name, tensor in inputs.items()}
        before = self._gradient.clone()
        with torch.cuda.device(device):
            self._stream: torch.cuda.Stream = beside._stream if beside else torch.cuda.Stream()
            self._pool: Any = beside._pool if beside else torch.cuda.graph_pool_handle()
            self._graph = torch.cuda.CUDAGraph()
            try:
                eager = self._warmed_up()
                self._loss = self._captured()
                self._check(*eager)
            finally:
                self._gradient.copy_(before)

    def __call__(self, **inputs: Tensor) -> Tensor:
        """The loss on these inputs, without a wait for the device.

        The next call overwrites it, also that of another pass that shares memory with this one.

        Raises `SettingError` for other names or shapes than those that were captured.
        """
        shapes = {name: tuple(tensor.shape) for name, tensor in inputs.items()}
        captured = {name: tuple(tensor.shape) for name, tensor in self._inputs.items()}
        if shapes != captured:
            raise SettingError(f"the step was captured for {captured}, but got {shapes}")
        if self._gradients.hold_gradient() is not self._gradient:
            raise ShiraError(
                "values.grad was replaced since the step was captured; change it in place, or set "
                "it to None"
            )
        for name, tensor in inputs.items():
            self._inputs[name].copy_(tensor, non_blocking=True)
        self._graph.replay()
        return self._loss

    def _run(self) -> Tensor:
        loss = self._function(**self._inputs)
        loss.backward()
        self._then()
        return loss.detach()

    def _warmed_up(self) -> tuple[Tensor, Tensor]:
        """The loss and the gradient of a pass that is launched as ever, after a few of them."""
        current = torch.cuda.current_stream()
        self._stream.wait_stream(current)
        try:
            with torch.cuda.stream(self._stream):
                for _ in range(_WARMUPS):
                    self._gradient.zero_()
                    loss = self._run()
                return loss.clone(), self._gradient.clone()
        finally:
            current.wait_stream(self._stream)

    def _captured(self) -> Tensor:
        try:
            with (
                # A capture that fails does not leave its stream by itself.
                torch.cuda.stream(torch.cuda.current_stream()),
                _nothing_collected(),
                torch.cuda.graph(self._graph, pool=self._pool, stream=self._stream),
            ):
                return self._run()
        except RuntimeError as error:
            # The end of a failed capture raises, too, and knows less.
            reason = str(error.__context__ or error).splitlines()[0]
            raise CaptureError(f"CUDA could not capture this step: {reason}") from error

    def _check(self, loss: Tensor, gradient: Tensor) -> None:
        """Raise where a replay gives another loss or gradient than the pass that was launched."""
        self._gradient.zero_()
        self._graph.replay()
        _compare(((self._loss, loss), (self._gradient, gradient)))


def _compare(pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Raise where what a replay gave, first in a pair, is not what a launched pass gave.

    A pass that has diverged gives no number to compare with: that is for the training to find.
    """
    off = torch.stack([(found - known).norm() for found, known in pairs])
    known = torch.stack([known.norm() for _, known in pairs])
    # A replay that gives no number compares as false, and is wrong.
    wrong = known.isfinite() & ~(off <= _TOLERANCE * known)
    if bool(wrong.any()):
        shares = ", ".join(f"{share:.1%}" for share in (off / known).tolist())
        raise CaptureError(
            f"the captured step gives other numbers: its loss and gradient are off by {shares}"
        )


@contextmanager
def _nothing_collected() -> Iterator[None]:
    """Keep Python from freeing what the device holds in the block, which would end a capture."""
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
