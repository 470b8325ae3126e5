"""SparseTuner in compiled models: the same gradients, gathered inside, without recompiling."""

import copy
from collections.abc import Iterator

import pytest
import torch
from diffusers.models.attention import BasicTransformerBlock
from masked_training import gradient_at
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from shira_diffusion import masks
from shira_diffusion.tune import SparseTuner

WIDTH = 32


class Net(nn.Module):
    """Alike blocks, as diffusers compiles them, behind the other kinds of layer."""

    _repeated_blocks = ("BasicTransformerBlock",)

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, WIDTH)
        self.conv = nn.Conv2d(WIDTH, WIDTH, 3, padding=1)
        self.blocks = nn.ModuleList(BasicTransformerBlock(WIDTH, 2, WIDTH // 2) for _ in range(4))

    def forward(self, tokens: Tensor) -> Tensor:
        picture = self.embed(tokens).unflatten(1, (2, 4)).permute(0, 3, 1, 2)
        hidden = self.conv(picture).flatten(2).transpose(1, 2)
        for block in self.blocks:
            hidden = block(hidden)
        return hidden


def net() -> Net:
    torch.manual_seed(0)
    return Net()


def loss(module: nn.Module, number: int = 0) -> Tensor:
    tokens = torch.randint(9, (2, 8), generator=torch.Generator().manual_seed(number))
    return module(tokens).square().mean()


def chosen(module: nn.Module, *, differing: bool = False) -> dict[str, Tensor]:
    """Entries of attention, embedding and convolution; as many in each block, or `differing`."""
    weights = {
        name: weight
        for name, weight in module.named_parameters()
        if name in ("embed.weight", "conv.weight") or ("attn" in name and "weight" in name)
    }
    return {
        name: masks.rand(weight.shape, 20 + number * differing, masks.layer_generator(0, name))
        for number, (name, weight) in enumerate(sorted(weights.items()))
    }


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.parametrize("differing", [False, True])
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_alike_blocks_share_their_code(backend: str, differing: bool) -> None:
    compiled, dense = net(), net()
    indices = chosen(compiled, differing=differing)
    tuner = SparseTuner(compiled, indices)
    counter = CompileCounterWithBackend(backend)
    for block in compiled.blocks:
        block.compile(backend=counter, fullgraph=True)
    for _ in range(3):
        loss(compiled).backward()
        loss(dense).backward()
    # Budgets that differ cost one more, in which the number of entries is a variable.
    assert counter.frame_count == 1 + differing
    torch.testing.assert_close(tuner.values.grad, gradient_at(dense, indices))
    tuner.close()
    torch.testing.assert_close(loss(compiled), loss(net()))


def test_no_dense_gradient_leaves_a_compiled_model() -> None:
    module, dense = net(), net()
    indices = chosen(module)
    tuner = SparseTuner(module, indices)
    seen: list[Tensor | None] = []
    for name in indices:
        module.get_parameter(name).register_hook(seen.append)
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    loss(compiled).backward()
    loss(dense).backward()
    assert all(gradient is None for gradient in seen)
    torch.testing.assert_close(tuner.values.grad, gradient_at(dense, indices))


def test_a_model_compiled_before_it_is_tuned_trains_and_goes_back() -> None:
    module = net()
    compiled = torch.compile(module, backend="aot_eager")
    before = loss(compiled).detach()
    tuner = SparseTuner(compiled, chosen(module))
    optimizer = torch.optim.Adam(tuner.parameters(), lr=0.05)
    losses = []
    for _ in range(4):
        value = loss(compiled)
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
        tuner.write()
        losses.append(value.item())
    assert losses[0] == pytest.approx(before.item())
    assert losses == sorted(losses, reverse=True)
    assert loss(compiled).item() == pytest.approx(loss(module).item())
    tuner.close()
    assert torch.equal(loss(compiled), before)


def test_compiled_autocast_and_checkpointing_agree_with_eager() -> None:
    compiled, eager = net(), net()
    indices = chosen(compiled)
    tuners = [SparseTuner(module, indices) for module in (compiled, eager)]
    for block in compiled.blocks:
        block.compile(backend="aot_eager")

    def run(module: Net) -> None:
        hidden = torch.linspace(-1, 1, 8 * WIDTH).reshape(1, 8, WIDTH)
        for block in module.blocks:
            hidden = torch.utils.checkpoint.checkpoint(block, hidden, use_reentrant=False)
        hidden.float().square().mean().backward()

    for module in (compiled, eager):
        with torch.autocast("cpu", torch.bfloat16):
            run(module)
    first, second = (tuner.values.grad for tuner in tuners)
    assert first is not None
    assert first.any()
    torch.testing.assert_close(first, second, rtol=0.05, atol=1e-4)


class Odd(nn.Module):
    """Weights that no layer of a known kind uses alone: functional, shared, normalising."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)
        self.inner = nn.Linear(WIDTH, WIDTH, bias=False)
        self.head = nn.Linear(WIDTH, 9, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.inner(self.norm(self.embed(tokens)))
        return self.head(nn.functional.linear(hidden, self.inner.weight.t()))


@pytest.mark.parametrize("compiled", [False, True])
def test_every_use_of_a_weight_counts_once(compiled: bool) -> None:
    torch.manual_seed(0)
    module = Odd()
    dense = copy.deepcopy(module)
    indices = {
        name: masks.rand(weight.shape, 15, masks.layer_generator(0, name))
        for name, weight in module.named_parameters()
    }
    tuner = SparseTuner(module, indices)
    run = torch.compile(module, backend="aot_eager", fullgraph=True) if compiled else module
    for number in range(2):
        loss(run, number).backward()
        loss(dense, number).backward()
    torch.testing.assert_close(tuner.values.grad, gradient_at(dense, indices))
