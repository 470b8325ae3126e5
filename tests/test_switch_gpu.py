"""On a GPU the same mixes give the same weights as on the CPU, bit for bit."""

import copy
import random

import pytest
import torch
from torch import nn

from shira_diffusion.adapter import Adapter, AdapterInfo
from shira_diffusion.delta import SparseDelta
from shira_diffusion.errors import MismatchError
from shira_diffusion.residency import Residency
from shira_diffusion.switch import AdapterSwitcher

pytestmark = pytest.mark.gpu
NAMES = ["a", "b", "c", "d"]


def model(dtype: torch.dtype) -> nn.Sequential:
    torch.manual_seed(0)
    made = nn.Sequential(nn.Linear(70, 90), nn.Conv2d(8, 6, 3), nn.Linear(300, 400, bias=False))
    return made.to(dtype)


def adapter(module: nn.Module, seed: int) -> Adapter:
    generator = torch.Generator().manual_seed(seed)
    deltas = {}
    for name, weight in module.named_parameters():
        chosen = torch.rand(weight.shape, generator=generator) < 0.2 * (seed + 1) / 2
        dense = torch.randn(weight.shape, generator=generator) * chosen
        deltas[name] = SparseDelta.from_dense(dense.half())
    return Adapter(deltas, AdapterInfo(NAMES[seed]))


def pair(dtype: torch.dtype) -> tuple[nn.Module, AdapterSwitcher, nn.Module, AdapterSwitcher]:
    here = model(dtype)
    there = copy.deepcopy(here).cuda()
    switchers = AdapterSwitcher(here), AdapterSwitcher(there, Residency(device_bytes=300_000))
    for seed, name in enumerate(NAMES):
        for switcher in switchers:
            switcher.add(name, adapter(here, seed))
    return here, switchers[0], there, switchers[1]


def assert_equal(here: nn.Module, there: nn.Module) -> None:
    for (name, one), other in zip(here.named_parameters(), there.parameters(), strict=True):
        assert torch.equal(one.detach(), other.detach().cpu()), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_random_mixes(dtype: torch.dtype) -> None:
    here, ours, there, theirs = pair(dtype)
    rng = random.Random(0)
    for step in range(150):
        mix = {
            name: rng.choice([0.0, 1.0, -0.5, 0.3]) for name in rng.sample(NAMES, rng.randint(0, 4))
        }
        if step % 3 == 0:
            theirs.prefetch(*mix)
        ours.set(mix)
        theirs.set(mix)
        assert_equal(here, there)
    theirs.clear()
    assert_equal(model(dtype), there)


def test_modules_that_move_between_devices_and_layouts() -> None:
    here, ours, there, theirs = pair(torch.float32)
    moves = [
        lambda module: module.cpu(),
        lambda module: module.cuda(),
        lambda module: module.to(memory_format=torch.channels_last),
        lambda module: module[0].cpu(),
        lambda module: module.cuda(),
        lambda module: module.to(memory_format=torch.contiguous_format),
    ]
    for step, move in enumerate(moves):
        mix = {NAMES[step % 4]: 1.0, NAMES[(step + 1) % 4]: 0.5}
        ours.set(mix)
        theirs.set(mix)
        move(there)
        assert_equal(here, there)
    for module, switcher in ((here, ours), (there, theirs)):
        module.bfloat16()
        switcher.clear()
    assert_equal(model(torch.bfloat16), there)


def test_weights_changed_by_others_are_refused() -> None:
    _, _, there, theirs = pair(torch.bfloat16)
    theirs.set({"a": 1.0})
    theirs.set({"b": 1.0})
    theirs.set({"a": 1.0})
    with torch.no_grad():
        there[2].weight.add_(1.0)
    before = copy.deepcopy(there)
    for mix in ({}, {"b": 1.0}, {"a": 0.5}):
        with pytest.raises(MismatchError, match=r"'2\.weight' cannot be given back its base"):
            theirs.set(mix)
        assert_equal(before.cpu(), there)


def test_a_base_trained_in_between_is_read_again() -> None:
    here, ours, there, theirs = pair(torch.float32)
    for module, switcher in ((here, ours), (there, theirs)):
        for mix in ({"a": 1.0}, {"b": 1.0}, {}):
            switcher.set(mix)
        with torch.no_grad():
            module[2].weight.mul_(0.5)
        switcher.set({"a": 1.0})
    assert_equal(here, there)
    ours.clear()
    theirs.clear()
    assert_equal(here, there)


def test_autograd_notices_a_switch_between_forward_and_backward() -> None:
    _, _, there, theirs = pair(torch.float32)
    x = torch.randn(2, 300, device="cuda", requires_grad=True)
    y = there[2](x).sum()
    theirs.set({"a": 1.0})
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()
