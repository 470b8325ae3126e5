"""SparseTuner on CUDA: the same numbers, and no more than a dense gradient or two at a time."""

from collections.abc import Iterator

import pytest
import torch
from masked_training import train_dense, train_sparse
from torch import Tensor, nn

from shira_diffusion import masks
from shira_diffusion.tune import SparseTuner

pytestmark = pytest.mark.gpu
WIDTH = 2048
LAYERS = 12


def net(width: int = WIDTH, dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(width, width) for _ in range(LAYERS))).to("cuda", dtype)


def loss(module: nn.Module, batch: int) -> Tensor:
    first = module.get_parameter("0.weight")
    drawn = torch.randn(8, first.shape[1], generator=torch.Generator().manual_seed(batch))
    return module(drawn.to(first)).float().square().mean()


def chosen(module: nn.Module, density: float = 0.01) -> dict[str, Tensor]:
    return {
        name: masks.rand(
            weight.shape,
            masks.count(weight.numel(), density),
            masks.layer_generator(0, name),
        )
        for name, weight in module.named_parameters()
        if weight.dim() == 2
    }


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.parametrize("compiled", [False, True])
def test_training_equals_dense_training(compiled: bool) -> None:
    sparse, dense, base = net(64), net(64), net(64)
    indices = chosen(sparse, 0.1)
    tuner = SparseTuner(sparse, indices)
    if compiled:
        sparse.compile()
    adam = torch.optim.Adam(tuner.parameters(), lr=0.01)
    train_sparse(sparse, tuner, adam, loss, range(4))
    adam = torch.optim.Adam([dense.get_parameter(name) for name in indices], lr=0.01)
    train_dense(dense, indices, adam, loss, range(4))
    for name, weight in sparse.named_parameters():
        torch.testing.assert_close(weight, dense.get_parameter(name), rtol=1e-4, atol=1e-5)
    tuner.close()
    for name, weight in sparse.named_parameters():
        assert torch.equal(weight, base.get_parameter(name))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("compiled", [False, True])
def test_a_backward_pass_needs_room_for_two_dense_gradients(
    compiled: bool, dtype: torch.dtype
) -> None:
    module = net(dtype=dtype)
    tuner = SparseTuner(module, chosen(module))
    run = torch.compile(module) if compiled else module
    peaks = []
    for batch in range(3):
        tuner.values.grad = None
        value = loss(run, batch)
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        value.backward()
        peaks.append(torch.cuda.max_memory_allocated() - before)
    dense = WIDTH * WIDTH * dtype.itemsize
    gathered = 4 * tuner.values.numel() * 4
    assert peaks[-1] < 2 * dense + gathered + 2**22, [peak / dense for peak in peaks]
