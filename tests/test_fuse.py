"""weighted_sum against the sum of dense changes, entry by entry, in any order."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from shira_diffusion import fuse
from shira_diffusion.adapter import Adapter, AdapterInfo
from shira_diffusion.delta import SparseDelta
from shira_diffusion.errors import MismatchError, SettingError

SHAPE = (6, 7)


def adapter(seed: int, density: float, dtype: torch.dtype, **info: object) -> Adapter:
    generator = torch.Generator().manual_seed(seed)

    def sparse() -> SparseDelta:
        dense = torch.randn(SHAPE, generator=generator).to(dtype)
        return SparseDelta.from_dense(dense * (torch.rand(SHAPE, generator=generator) < density))

    names = ["unet.shared.weight", f"unet.own{seed}.weight"]
    return Adapter(
        {name: sparse() for name in names},
        AdapterInfo(f"a{seed}", **info),  # type: ignore[arg-type]
    )


def dense_sum(parts: list[tuple[Adapter, float]], name: str) -> Tensor:
    """Entry by entry in Python: fp32 terms, added from the smallest to the largest."""
    total = torch.zeros(SHAPE).flatten()
    for place in range(total.numel()):
        terms = []
        for one, strength in parts:
            if name in one.deltas:
                terms.append(one.deltas[name].to_dense().flatten()[place].float() * strength)
        for term in sorted(terms, key=float):
            total[place] = total[place] + term
    return total.reshape(SHAPE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("density", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_equals_the_dense_sum(dtype: torch.dtype, density: float, count: int) -> None:
    parts = [(adapter(seed, density, dtype), 0.7 - 0.3 * seed) for seed in range(count)]
    fused = fuse.weighted_sum(parts, name="mix")
    assert set(fused.deltas) == {name for one, _ in parts for name in one.deltas}
    for name, change in fused.deltas.items():
        assert change.values.dtype == torch.float32
        touched = torch.zeros(SHAPE, dtype=torch.bool).flatten()
        for one, _ in parts:
            if name in one.deltas:
                touched[one.deltas[name].indices.long()] = True
        assert torch.equal(change.indices.long(), touched.nonzero().squeeze(1))
        assert torch.equal(change.to_dense(), dense_sum(parts, name))


def test_does_not_depend_on_the_order() -> None:
    # 1e8 + 1 - 1e8 in fp32 is 0 or 1 by order, so a plain running sum would differ.
    def one(value: float) -> Adapter:
        change = SparseDelta(torch.tensor([3], dtype=torch.int32), torch.tensor([value]), (5,))
        return Adapter({"w": change}, AdapterInfo(f"v{value}", trigger_words=(f"t{value}",)))

    parts = [(one(value), 1.0) for value in (1e8, 1.0, -1e8, 3.0)]
    results = [fuse.weighted_sum(order, name="mix") for order in itertools.permutations(parts)]
    assert {float(result.deltas["w"].values) for result in results} == {
        float(results[0].deltas["w"].values)
    }
    assert {result.info.trigger_words for result in results} == {results[0].info.trigger_words}


def test_cancelled_entries_stay_in_the_union() -> None:
    one = adapter(1, 0.5, torch.float32)
    fused = fuse.weighted_sum([(one, 1.0), (one, -1.0)], name="nothing")
    assert fused.nnz == one.nnz
    assert all(not change.values.any() for change in fused.deltas.values())


def test_what_is_known_is_joined() -> None:
    one = adapter(1, 0.5, torch.float32, mask="rand", license="MIT", trigger_words=("sks", "b"))
    two = adapter(2, 0.5, torch.float32, mask="wm", license="MIT", trigger_words=("b", "c"))
    info = fuse.weighted_sum([(two, 0.5), (one, 1.0)], name="both").info
    assert (info.name, info.mask, info.license) == ("both", "rand; wm", "MIT")
    assert info.trigger_words == ("sks", "b", "c")
    assert dict(info.training) == {"fused": "a1 x 1, a2 x 0.5"}


def test_what_cannot_be_fused_is_refused() -> None:
    one = adapter(1, 0.5, torch.float32, base_fingerprint={"unet": "x"})
    with pytest.raises(SettingError, match="nothing to fuse"):
        fuse.weighted_sum([], name="none")
    for strength in (math.nan, math.inf):
        with pytest.raises(SettingError, match="finite"):
            fuse.weighted_sum([(one, strength)], name="bad")
    with pytest.raises(SettingError, match="fp32's range"):
        fuse.weighted_sum([(one, 3e38), (one, 3e38)], name="overflow")
    other_base = adapter(2, 0.5, torch.float32, base_fingerprint={"unet": "y"})
    with pytest.raises(MismatchError, match="different bases"):
        fuse.weighted_sum([(one, 1.0), (other_base, 1.0)], name="bad")
    change = SparseDelta.from_dense(torch.ones(3))
    other_shape = Adapter({"unet.shared.weight": change}, AdapterInfo("other"))
    with pytest.raises(MismatchError, match="different shapes"):
        fuse.weighted_sum([(one, 1.0), (other_shape, 1.0)], name="bad")


@pytest.mark.parametrize(
    ("methods", "told"),
    [
        (("lora", "lora"), "shira"),
        (("dora",), "shira"),
        (("shira", "lora"), "shira"),
        (("shira-dora", "shira-dora"), "shira-dora"),
        (("shira-dora", "shira"), "shira"),
    ],
)
def test_the_method_is_what_the_result_is(methods: tuple[str, ...], told: str) -> None:
    parts = [
        (adapter(number, 0.5, torch.float32, method=method), 1.0)
        for number, method in enumerate(methods)
    ]
    assert fuse.weighted_sum(parts, name="mix").info.method == told
