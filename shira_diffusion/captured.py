"""A training step's forward and backward pass as one CUDA graph, for hosts that launch slowly."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from shira_diffusion.errors import SettingError, ShiraError
from shira_diffusion.tune import SparseTuner

_WARMUPS = 3


class CapturedPass:
    """Replays `loss(**inputs)` and its backward pass without the host's work in between.

    `inputs` are tensors on the tuned module's CUDA device; every call brings others of the same
    shapes, and adds to `tuner.values.grad` as a backward pass does. The tuned weights stay where
    they are, so the optimizer and `tuner.write` follow each call as ever. What `loss` computes
    must not depend on data by way of the host (no `.item()`), and checkpointing needs
    `preserve_rng_state=False`. Compile the module before; capture again once it was moved.

    Raises `SettingError` when there is nothing that CUDA could capture.
    """

    def __init__(
        self, tuner: SparseTuner, loss: Callable[..., Tensor], inputs: Mapping[str, Tensor]
    ):
        devices = {tensor.device for tensor in (tuner.values, *inputs.values())}
        if len(devices) > 1 or tuner.values.device.type != "cuda":
            raise SettingError(
                f"a CUDA graph needs module and inputs on one CUDA device, got "
                f"{sorted(map(str, devices))}; move them there, or train without CapturedPass"
            )
        self._tuner = tuner
        self._function = loss
        self._inputs = {name: tensor.detach().clone() for name, tensor in inputs.items()}
        self._gradient = tuner.hold_gradient()
        before = self._gradient.clone()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(_WARMUPS):
                self._run()
        torch.cuda.current_stream().wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._loss = self._run()
        self._gradient.copy_(before)

    def __call__(self, **inputs: Tensor) -> Tensor:
        """The loss on these inputs, a tensor that the next call overwrites; no wait for the device.

        Raises `SettingError` for other names or shapes than those that were captured.
        """
        shapes = {name: tuple(tensor.shape) for name, tensor in inputs.items()}
        captured = {name: tuple(tensor.shape) for name, tensor in self._inputs.items()}
        if shapes != captured:
            raise SettingError(f"the step was captured for {captured}, but got {shapes}")
        if self._tuner.hold_gradient() is not self._gradient:
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
        return loss.detach()
