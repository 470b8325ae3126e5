"""Switching under torch.compile: nothing is compiled anew, and the outputs are eager's."""

import copy

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from shira_diffusion.adapter import Adapter, AdapterInfo
from shira_diffusion.delta import SparseDelta
from shira_diffusion.switch import AdapterSwitcher


def block() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16), nn.LayerNorm(16))


def adapters(module: nn.Module) -> dict[str, Adapter]:
    generator = torch.Generator().manual_seed(1)
    made = {}
    for name in ("a", "b", "c"):
        deltas = {}
        for weight_name, weight in module.named_parameters():
            chosen = torch.rand(weight.shape, generator=generator) < 0.2
            dense = torch.randn(weight.shape, generator=generator) * chosen
            deltas[weight_name] = SparseDelta.from_dense(dense)
        made[name] = Adapter(deltas, AdapterInfo(name))
    return made


def mixes() -> list[dict[str, float]]:
    return [{"abc"[n % 3]: 1.0 - n / 200, "abc"[(n + n // 7) % 3]: n / 100} for n in range(99)] + [
        {}
    ]


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_a_hundred_switches_compile_nothing(backend: str) -> None:
    torch.compiler.reset()
    counters.clear()
    plain = block()
    module = copy.deepcopy(plain)
    compiled = torch.compile(module, backend=backend)
    ours, theirs = AdapterSwitcher(compiled), AdapterSwitcher(plain)
    for name, adapter in adapters(plain).items():
        ours.add(name, adapter)
        theirs.add(name, adapter)
    x = torch.randn(4, 16)
    addresses = [weight.data_ptr() for weight in module.parameters()]
    with torch.no_grad():
        base = compiled(x)
        graphs = counters["stats"]["unique_graphs"]
        assert graphs > 0
        for mix in mixes():
            ours.set(mix)
            theirs.set(mix)
            torch.testing.assert_close(compiled(x), plain(x), rtol=1e-4, atol=1e-5)
        assert torch.equal(compiled(x), base)
    assert counters["stats"]["unique_graphs"] == graphs
    assert not counters["recompile_limit"]
    assert [weight.data_ptr() for weight in module.parameters()] == addresses


@pytest.mark.gpu
def test_a_captured_graph_sees_every_switch() -> None:
    plain = block().cuda()
    module = copy.deepcopy(plain)
    ours, theirs = AdapterSwitcher(module), AdapterSwitcher(plain)
    for name, adapter in adapters(plain).items():
        ours.add(name, adapter)
        theirs.add(name, adapter)
    x = torch.randn(4, 16, device="cuda")
    with torch.no_grad():
        module(x)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = module(x)
        for mix in mixes():
            ours.set(mix)
            theirs.set(mix)
            graph.replay()
            torch.testing.assert_close(y, plain(x), rtol=1e-4, atol=1e-5)
