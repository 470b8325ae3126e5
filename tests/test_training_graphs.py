"""A pass as a CUDA graph trains as one that is launched, for every method and shape of batch."""

import copy
import dataclasses
import gc
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from PIL import Image
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional as F
from training_toys import CPU, make_batches, no_gradients, settings

from shira_diffusion.captured import CapturedPass, HeldGradients
from shira_diffusion.errors import CaptureError, SettingError
from training import methods, passes
from training.batches import Batch, Batches
from training.config import METHODS, MIXED
from training.errors import ConfigError
from training.loop import Loop
from training.machine import Machine
from training.memory import footprint
from training.objective import Objective
from training.run import run
from training.settings import load_config

torch.set_num_threads(1)

KINDS: dict[str, dict[str, Any]] = {
    **{method: {} for method in METHODS},
    "shira-dora": {"rank": 4},
}


class Replayed:
    """Does on the CPU what a graph does: always the same memory for inputs and gradients."""

    made: ClassVar[list["Replayed"]] = []

    def __init__(
        self,
        gradients: HeldGradients,
        loss: Callable[..., Tensor],
        inputs: Mapping[str, Tensor],
        *,
        then: Callable[[], None],
        beside: "Replayed | None" = None,
    ) -> None:
        assert (beside is None) == (not self.made)
        self._gradients = gradients
        self._gradient = gradients.hold_gradient()
        self._loss = loss
        self._then = then
        self._inputs = {name: tensor.clone() for name, tensor in inputs.items()}
        self.made.append(self)

    def __call__(self, **inputs: Tensor) -> Tensor:
        assert self._gradients.hold_gradient() is self._gradient
        for name, tensor in inputs.items():
            self._inputs[name].copy_(tensor)
        loss = self._loss(**self._inputs)
        loss.backward()
        self._then()
        return loss.detach()


@pytest.fixture
def replayed(monkeypatch: pytest.MonkeyPatch) -> list[Replayed]:
    """Graphs by a stand-in; what was made of it."""
    monkeypatch.setattr(Replayed, "made", [])
    monkeypatch.setattr(passes, "CapturedPass", Replayed)
    monkeypatch.setattr("training.loop.create_pass", always_graphed)
    return Replayed.made


def always_graphed(
    config: Any, objective: Objective, method: methods.Trainable, _: Machine, warn: passes.Warn
) -> passes.Pass:
    if not config.cuda_graphs:
        return passes.Launched(objective, method)
    return passes.Graphed(objective, method, warn)


def of_two_shapes(pipe: StableDiffusionXLPipeline) -> Batches:
    """Squares and, as wide again as high, others; no class images."""
    batches = make_batches(pipe, classes=0)
    wide = [
        dataclasses.replace(example, latents=example.latents.repeat(1, 1, 2))
        for example in batches.instances[:2]
    ]
    return dataclasses.replace(batches, instances=[*batches.instances, *wide])


def trained(
    pipe: StableDiffusionXLPipeline, machine: Machine, method: str, **changes: Any
) -> tuple[list[float], list[Tensor], list[str]]:
    """Train a few steps of two batches each; return losses, values and warnings."""
    warnings: list[str] = []
    config = settings(method=method, accumulation=2, **KINDS[method], **changes)
    objective = Objective.of(pipe, machine, mixed=method in MIXED)
    batches = of_two_shapes(pipe)
    pipe.unet.to(machine.device)
    tuned = methods.create(config, pipe.unet, no_gradients, None)
    loop = Loop(config, tuned, objective, batches, machine, warnings.append)
    losses = [result.loss for result in loop.run()]
    values = [value.detach().cpu().clone() for value in tuned.parameters()]
    tuned.close()
    return losses, values, warnings


@pytest.mark.parametrize("method", METHODS)
def test_replays_train_as_launches_do(
    method: str, toy_pipe: StableDiffusionXLPipeline, replayed: list[Replayed]
) -> None:
    expected = trained(copy.deepcopy(toy_pipe), CPU, method)
    found = trained(toy_pipe, CPU, method, cuda_graphs=True)
    assert len(replayed) == 2  # one a shape
    torch.testing.assert_close(found[0], expected[0])
    torch.testing.assert_close(found[1], expected[1])
    assert found[2] == []


def test_graphs_go_with_their_run(toy_base: Path, tmp_path: Path, replayed: list[Replayed]) -> None:
    Image.new("RGB", (32, 32)).save(tmp_path / "0.png")
    (tmp_path / "0.txt").write_text("a castle")
    few = ["steps=1", "batch=1", "sample_steps=0", "checkpoint_every=0", "cuda_graphs=true"]
    place = [f"run={tmp_path}/run", f"adapters_dir={tmp_path}/out", f"cache_dir={tmp_path}/cache"]
    given = [f"data={tmp_path}", f"base={toy_base}", "name=x", "device=cpu", *few, *place]
    gc.disable()  # what else goes with a cycle, goes later
    try:
        run(load_config("quick", given), Console(quiet=True))
        graph = weakref.ref(replayed.pop())
        assert not replayed
        assert graph() is None
    finally:
        gc.enable()


def test_a_failed_capture_costs_a_warning_and_nothing_else(
    toy_pipe: StableDiffusionXLPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise CaptureError("no stream")

    expected = trained(copy.deepcopy(toy_pipe), CPU, "lora")
    monkeypatch.setattr("training.loop.create_pass", always_graphed)
    monkeypatch.setattr(passes, "CapturedPass", fail)
    losses, values, warnings = trained(toy_pipe, CPU, "lora", cuda_graphs=True)
    assert warnings == ["no stream. This run goes on without cuda_graphs."]
    torch.testing.assert_close((losses, values), expected[:2])


def test_a_capture_without_memory_costs_a_warning_and_nothing_else(
    toy_pipe: StableDiffusionXLPipeline,
    replayed: list[Replayed],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The second shape's warming up fails when its gradients are handed on."""

    class Large(Replayed):
        def __init__(self, *given: Any, beside: Replayed | None = None, **more: Any) -> None:
            super().__init__(*given, beside=beside, **more)
            if beside:
                before = self._gradient.clone()
                with monkeypatch.context() as patched:
                    patched.setattr(torch.Tensor, "index_copy", no_memory)
                    try:
                        self(**self._inputs)
                    finally:
                        self._gradient.copy_(before)

    def no_memory(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    expected = trained(copy.deepcopy(toy_pipe), CPU, "shira-dora")
    monkeypatch.setattr(passes, "CapturedPass", Large)
    losses, values, warnings = trained(toy_pipe, CPU, "shira-dora", cuda_graphs=True)
    (warning,) = warnings
    assert "memory" in warning
    assert "goes on without cuda_graphs" in warning
    torch.testing.assert_close((losses, values), expected[:2])


def test_without_cuda_there_is_a_remark(toy_pipe: StableDiffusionXLPipeline) -> None:
    expected = trained(copy.deepcopy(toy_pipe), CPU, "shira")
    losses, values, warnings = trained(toy_pipe, CPU, "shira", cuda_graphs=True)
    assert warnings == ["cuda_graphs needs CUDA; this run is on cpu and goes without."]
    assert losses == expected[0]
    assert all(torch.equal(*pair) for pair in zip(values, expected[1], strict=True))


@pytest.mark.parametrize("setting", ["train_text_encoders=true", "new_token=<ink>"])
def test_captions_that_are_read_anew_are_refused(setting: str) -> None:
    with pytest.raises(ConfigError, match="cuda_graphs does not go with"):
        load_config("quick", ["data=x", "cuda_graphs=true", setting])


@pytest.mark.parametrize("method", METHODS)
def test_no_pass_waits_for_its_numbers(method: str, toy_pipe: StableDiffusionXLPipeline) -> None:
    """On tensors without storage, where what asks for a number fails."""
    config = settings(method=method, min_snr_gamma=5.0, noise_offset=0.1, **KINDS[method])
    objective = Objective.of(
        toy_pipe, CPU, min_snr_gamma=5.0, noise_offset=0.1, mixed=method in MIXED
    )
    tuned = methods.create(config, toy_pipe.unet, no_gradients, None)
    assert footprint(toy_pipe, tuned, objective, config, count=2, size=(32, 32)).step > 0


def test_gradients_are_held_where_they_are() -> None:
    layers = nn.Linear(5, 3), nn.Conv2d(2, 4, 3)
    kernel = layers[1].weight
    kernel.data = kernel.data.contiguous(memory_format=torch.channels_last)
    values = [value for layer in layers for value in layer.parameters()]
    held = HeldGradients(values)
    memory = held.hold_gradient()
    parts = [value.grad for value in values]
    expected = [torch.zeros_like(value) for value in values]
    for turn in range(3):
        layers[0](torch.full((2, 5), turn + 1.0)).sum().backward()
        F.relu(layers[1](torch.full((1, 2, 4, 4), turn + 1.0))).square().sum().backward()
        fresh = torch.autograd.grad(
            layers[0](torch.full((2, 5), turn + 1.0)).sum()
            + F.relu(layers[1](torch.full((1, 2, 4, 4), turn + 1.0))).square().sum(),
            values,
        )
        expected = [old + new for old, new in zip(expected, fresh, strict=True)]
        assert held.hold_gradient() is memory
        assert all(value.grad is part for value, part in zip(values, parts, strict=True))
        torch.testing.assert_close([value.grad for value in values], expected)
    # What is none is zero again, and what came elsewhere is moved.
    values[0].grad, values[2].grad = None, torch.full_like(values[2], 7.0)
    assert held.hold_gradient() is memory
    assert all(value.grad is part for value, part in zip(values, parts, strict=True))
    torch.testing.assert_close(values[0].grad, torch.zeros_like(values[0]))
    torch.testing.assert_close(values[2].grad, torch.full_like(values[2], 7.0))
    torch.testing.assert_close(values[1].grad, expected[1])
    for value in values:
        value.grad = None
    assert not held.hold_gradient().any()


def test_gradients_of_several_dtypes_are_not_held_together() -> None:
    with pytest.raises(SettingError, match=r"float16.*float32"):
        HeldGradients([nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2).half())])


@pytest.mark.gpu
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", METHODS)
def test_graphs_train_as_launches_do(
    method: str, precision: torch.dtype, toy_pipe: StableDiffusionXLPipeline
) -> None:
    machine = Machine(torch.device("cuda"), precision)
    toy_pipe.to(dtype=precision)
    expected = trained(copy.deepcopy(toy_pipe), machine, method)
    found = trained(toy_pipe, machine, method, cuda_graphs=True)
    assert found[2] == []
    if precision == torch.float32:
        torch.testing.assert_close(found[:2], expected[:2], rtol=1e-3, atol=1e-4)
        return
    # Where a gradient is about 0 its sign, and with it Adam's step, is rounding's.
    torch.testing.assert_close(found[0], expected[0], rtol=0.1, atol=0.01)
    values, known = (torch.cat([one.flatten() for one in some[1]]) for some in (found, expected))
    assert (values - known).norm() < 0.1 * known.norm()


@pytest.mark.gpu
@pytest.mark.parametrize("method", METHODS)
def test_checkpointing_is_captured(method: str, toy_pipe: StableDiffusionXLPipeline) -> None:
    from training.recompute import keep_little

    machine = Machine(torch.device("cuda"), torch.float32)
    expected = trained(copy.deepcopy(toy_pipe), machine, method)
    keep_little(toy_pipe.unet)
    found = trained(toy_pipe, machine, method, cuda_graphs=True)
    assert found[2] == []
    torch.testing.assert_close(found[0], expected[0], rtol=1e-3, atol=1e-4)


@pytest.mark.gpu
def test_what_waits_for_the_host_goes_on_without(
    toy_pipe: StableDiffusionXLPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(torch.device("cuda"), torch.float32)
    expected = trained(copy.deepcopy(toy_pipe), machine, "shira")
    plain = Objective.loss

    def asking(self: Objective, batch: Batch) -> Tensor:
        loss = plain(self, batch)
        return loss if loss.item() > -1 else -loss

    monkeypatch.setattr(Objective, "loss", asking)
    losses, _, warnings = trained(toy_pipe, machine, "shira", cuda_graphs=True)
    assert len(warnings) == 1
    assert "could not capture" in warnings[0]
    torch.testing.assert_close(losses, expected[0], rtol=1e-3, atol=1e-4)


@pytest.mark.gpu
def test_a_graph_that_computes_something_else_is_refused() -> None:
    layer = nn.Linear(4, 4).cuda()
    held = HeldGradients(list(layer.parameters()))
    calls = []

    def loss(x: Tensor) -> Tensor:
        calls.append(0)  # the host's count is not in the graph
        return layer(x).square().mean() * len(calls)

    with pytest.raises(CaptureError, match="other numbers"):
        CapturedPass(held, loss, {"x": torch.ones(2, 4, device="cuda")})
    assert not held.hold_gradient().any()
