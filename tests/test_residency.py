"""Adapters under a byte budget: the least recently used go first, and none comes back changed."""

from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from shira_diffusion.adapter import Adapter, AdapterInfo
from shira_diffusion.delta import SparseDelta
from shira_diffusion.errors import SettingError, ShiraError, UnknownAdapterError
from shira_diffusion.packed import Packed
from shira_diffusion.residency import Residency
from shira_diffusion.switch import AdapterSwitcher

CPU = torch.device("cpu")
# Bytes of one adapter of these tests: 10 indices of 4, 10 values of 2.
ONE = 60


def packed(seed: int) -> Packed:
    generator = torch.Generator().manual_seed(seed)
    deltas = {}
    for slot in ("a", "b"):
        indices = torch.randperm(40, generator=generator)[:5].sort().values.int()
        deltas[slot] = SparseDelta(indices, torch.randn(5, generator=generator).half(), (40,))
    return Packed.of(deltas)


def assert_same(one: Packed, other: Packed) -> None:
    assert (one.slots, one.counts, one.peak) == (other.slots, other.counts, other.peak)
    assert torch.equal(one.indices, other.indices)
    assert torch.equal(one.values.view(torch.int16), other.values.view(torch.int16))


@given(
    room=st.integers(0, 4),
    uses=st.lists(st.tuples(st.sampled_from("abcde"), st.booleans()), max_size=30),
)
@settings(deadline=None, max_examples=60)
def test_the_least_recently_used_go_to_disk(room: int, uses: list[tuple[str, bool]]) -> None:
    residency = Residency(host_bytes=room * ONE)
    recent: OrderedDict[str, None] = OrderedDict()
    known = set()
    for name, drop in uses:
        if drop and name in known:
            residency.drop(name)
            recent.pop(name, None)
            known.remove(name)
            continue
        if name not in known:
            residency.put(name, packed(ord(name)))
            known.add(name)
        fetched = residency.fetch([name], CPU)
        assert_same(fetched[name], packed(ord(name)))
        recent[name] = None
        recent.move_to_end(name)
        # What is in use may exceed the budget.
        while len(recent) > max(room, 1):
            recent.popitem(last=False)
        assert {one for one in known if residency.where(one) == "host"} == set(recent)
        assert all(residency.holds(one, CPU) == (one in recent) for one in known)


def test_a_mix_may_exceed_the_budget_while_it_is_fetched() -> None:
    residency = Residency(host_bytes=0)
    for name in "abc":
        residency.put(name, packed(ord(name)))
    found = residency.fetch(["a", "b"], CPU)
    assert [residency.where(name) for name in "abc"] == ["host", "host", "disk"]
    for name, one in found.items():
        assert_same(one, packed(ord(name)))


def test_files_go_with_their_adapters(tmp_path: Path) -> None:
    residency = Residency(host_bytes=0, folder=tmp_path / "spill")
    for name in "abc":
        residency.put(name, packed(ord(name)))
    assert len(list(tmp_path.rglob("*.safetensors"))) == 2
    residency.drop("a")
    (left,) = tmp_path.rglob("*.safetensors")
    left.write_bytes(b"cut short")
    with pytest.raises(ShiraError, match=r"'b' was put aside.*add it again"):
        residency.fetch(["b"], CPU)
    del residency
    assert not list(tmp_path.rglob("*.safetensors"))


def test_settings_and_disks_that_cannot_work(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="host_bytes must be 0 or more"):
        Residency(host_bytes=-1)
    file = tmp_path / "file"
    file.touch()
    residency = Residency(host_bytes=0, folder=file)
    residency.put("a", packed(1))
    with pytest.raises(ShiraError, match="cannot be put aside"):
        residency.put("b", packed(2))
    assert_same(residency.fetch(["a"], CPU)["a"], packed(1))


def model() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(30, 20)


def adapter(seed: int) -> Adapter:
    generator = torch.Generator().manual_seed(seed)
    dense = torch.randn(20, 30, generator=generator) * (
        torch.rand(20, 30, generator=generator) < 0.2
    )
    return Adapter({"weight": SparseDelta.from_dense(dense.half())}, AdapterInfo(f"a{seed}"))


def mixes() -> list[dict[str, float]]:
    generator = torch.Generator().manual_seed(0)
    return [
        {
            f"a{int(seed)}": float(torch.rand((), generator=generator))
            for seed in torch.randperm(4, generator=generator)[: 1 + number % 3]
        }
        for number in range(40)
    ]


def weights_under(switcher: AdapterSwitcher, module: nn.Linear) -> list[Tensor]:
    for seed in range(4):
        switcher.add(f"a{seed}", adapter(seed))
    seen = []
    for mix in mixes():
        switcher.set(mix)
        seen.append(module.weight.detach().clone())
    switcher.clear()
    return [*seen, module.weight.detach().clone()]


def test_a_switcher_with_a_small_budget_gives_the_same_weights() -> None:
    plain, small = model(), model()
    expected = weights_under(AdapterSwitcher(plain), plain)
    residency = Residency(host_bytes=800)
    for one, other in zip(
        expected, weights_under(AdapterSwitcher(small, residency), small), strict=True
    ):
        assert torch.equal(one, other)
    assert "disk" in {residency.where(f"a{seed}") for seed in range(4)}
    assert torch.equal(expected[-1], model().weight.detach())


def test_prefetch_brings_it_before_it_is_needed() -> None:
    module, residency = model(), Residency(host_bytes=0)
    switcher = AdapterSwitcher(module, residency)
    for seed in range(3):
        switcher.add(f"a{seed}", adapter(seed))
    assert residency.where("a0") == "disk"
    switcher.prefetch("a0", "a1")
    assert [residency.where(f"a{seed}") for seed in range(3)] == ["host", "host", "disk"]
    with pytest.raises(UnknownAdapterError):
        switcher.prefetch("none")


@pytest.mark.gpu
def test_on_a_gpu_the_least_recently_used_leave_it() -> None:
    cuda = torch.device("cuda", torch.cuda.current_device())
    residency = Residency(device_bytes=2 * ONE)
    for name in "abc":
        residency.put(name, packed(ord(name)))
    for names in (["a"], ["b"], ["a"], ["c"], ["a", "b", "c"]):
        for name, one in residency.fetch(names, cuda).items():
            assert_same(one.to(CPU), packed(ord(name)))
            assert residency.holds(name, cuda)
        if names == ["c"]:
            assert [residency.where(name) for name in "abc"] == ["device", "host", "device"]
    plain, small = model(), model().cuda()
    expected = weights_under(AdapterSwitcher(plain), plain)
    seen = weights_under(AdapterSwitcher(small, Residency(device_bytes=800)), small)
    for one, other in zip(expected, seen, strict=True):
        assert torch.equal(one, other.cpu())


def test_an_adapter_in_one_piece_is_not_copied(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    deltas = {}
    for number in range(4):
        dense = torch.randn(6, 7, generator=generator).half()
        dense[torch.rand(6, 7, generator=generator) > 0.3 * number] = 0
        deltas[f"w{number}"] = SparseDelta.from_dense(dense)
    scattered = Packed.of(deltas)
    Adapter(deltas, AdapterInfo("a")).save(tmp_path / "a.safetensors")
    loaded = Adapter.load(tmp_path / "a.safetensors").deltas
    joined = Packed.of(loaded)
    for one, part in ((joined.indices, "indices"), (joined.values, "values")):
        assert torch.equal(one, getattr(scattered, part))
        assert one.data_ptr() == getattr(loaded["w1"], part).data_ptr()
    # Neither another order of the same pieces nor a gap between them is taken for one piece.
    swapped = {"a": loaded["w3"], "b": loaded["w1"]}
    gapped = {"a": loaded["w1"], "b": loaded["w3"]}
    for some in (swapped, gapped):
        packed = Packed.of(some)
        assert torch.equal(packed.values, torch.cat([one.values for one in some.values()]))
        assert torch.equal(packed.indices, torch.cat([one.indices for one in some.values()]))
