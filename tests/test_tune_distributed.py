"""Several processes: the flat gradient is all that they reduce."""

from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from shira_diffusion import masks
from shira_diffusion.tune import SparseTuner

WORLD = 2
STEPS = 4


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4))


def train(rank: int, world: int) -> tuple[SparseTuner, nn.Module]:
    """Train on this rank's share of each batch; the share of one process is all of it."""
    module = net()
    indices = {
        name: masks.rand(weight.shape, 20, masks.layer_generator(0, name))
        for name, weight in module.named_parameters()
        if weight.dim() == 2
    }
    tuner = SparseTuner(module, indices)
    optimizer = torch.optim.AdamW(tuner.parameters(), lr=0.02, weight_decay=0.0)
    generator = torch.Generator().manual_seed(1)
    for _ in range(STEPS):
        batch = torch.randn(2 * WORLD, 8, generator=generator)
        module(batch[rank::world]).square().sum().div(len(batch)).backward()
        if world > 1:
            dist.all_reduce(tuner.values.grad)
        optimizer.step()
        optimizer.zero_grad()
        tuner.write()
    return tuner, module


def worker(rank: int, folder: str) -> None:
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=WORLD
    )
    tuner, module = train(rank, WORLD)
    state = {"values": tuner.values.detach(), **module.state_dict()}
    torch.save(state, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_equal_one_on_the_joined_batch(tmp_path: Path) -> None:
    mp.spawn(worker, args=(str(tmp_path),), nprocs=WORLD)
    tuner, module = train(0, 1)
    expected: dict[str, Tensor] = {"values": tuner.values.detach(), **module.state_dict()}
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(WORLD))
    base = net().state_dict()
    for name, wanted in expected.items():
        assert torch.equal(first[name], second[name])
        # The sums of a batch are formed in another order.
        torch.testing.assert_close(first[name], wanted, rtol=1e-5, atol=1e-6)
    assert not torch.equal(expected["0.weight"], base["0.weight"])
