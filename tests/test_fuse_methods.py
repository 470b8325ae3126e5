"""Collision policies, TIES, DARE and pruning against their definitions on dense changes."""

import itertools
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from shira_diffusion import fuse
from shira_diffusion.adapter import Adapter, AdapterInfo
from shira_diffusion.delta import SparseDelta
from shira_diffusion.errors import SettingError

SHAPES = {"a.weight": (5, 6), "b.weight": (7,)}
Parts = list[tuple[Adapter, float]]


def adapter(seed: int, density: float, dtype: torch.dtype = torch.float32) -> Adapter:
    """Few different values, so that magnitudes tie and opposites meet."""
    generator = torch.Generator().manual_seed(seed)
    deltas = {}
    for name, shape in SHAPES.items():
        chosen = (torch.rand(shape, generator=generator) < density).flatten()
        values = torch.randint(-3, 4, (chosen.numel(),), generator=generator) / 2
        indices = chosen.nonzero().squeeze(1).int()
        deltas[name] = SparseDelta(indices, values[chosen].to(dtype), shape)
    return Adapter(deltas, AdapterInfo(f"a{seed}"))


def entries(one: Adapter) -> dict[tuple[str, int], float]:
    """Every touched entry, in the order of names and indices."""
    return {
        (name, int(index)): float(value)
        for name, delta in one.deltas.items()
        for index, value in zip(delta.indices, delta.values, strict=True)
    }


def by_entry(parts: Parts, rule: Callable[[list[float]], float]) -> dict[tuple[str, int], float]:
    """`rule` of the terms at every touched entry, in Python's own floats."""
    terms: dict[tuple[str, int], list[float]] = {}
    for one, strength in parts:
        for entry, value in entries(one).items():
            terms.setdefault(entry, []).append(value * strength)
    return {entry: rule(found) for entry, found in sorted(terms.items())}


def slow_prune(one: Adapter, keep: float) -> dict[tuple[str, int], float]:
    found = entries(one)
    largest = sorted(found, key=lambda entry: (-abs(found[entry]), entry))
    kept = largest[: max(1, round(keep * len(found)))]
    return {entry: value for entry, value in found.items() if entry in kept}


def slow_ties(parts: Parts, keep: float) -> dict[tuple[str, int], float]:
    trimmed = [(slow_prune(one, keep), strength) for one, strength in parts]
    result = {}
    for entry in sorted(set().union(*(found for found, _ in trimmed))):
        terms = [found[entry] * strength for found, strength in trimmed if entry in found]
        agreeing = [term for term in terms if term * sum(terms) > 0]
        result[entry] = sum(agreeing) / len(agreeing) if agreeing else 0.0
    return result


def mean_of(terms: list[float]) -> float:
    return sum(terms) / len(terms)


def strongest_of(terms: list[float]) -> float:
    return max(terms, key=lambda term: (abs(term), term))


# Halves times these strengths are exact in fp32, so Python's sums are too.
STRENGTHS = st.sampled_from([1.0, -0.5, 0.25, 2.0])
DENSITIES = st.sampled_from([0.0, 0.4, 1.0])


@given(st.lists(st.tuples(DENSITIES, STRENGTHS), min_size=1, max_size=5))
@settings(deadline=None, max_examples=80)
def test_collision_policies_equal_their_definitions(drawn: list[tuple[float, float]]) -> None:
    parts = [(adapter(seed, density), one) for seed, (density, one) in enumerate(drawn)]
    for method, rule in ((fuse.mean, mean_of), (fuse.strongest, strongest_of)):
        fused = entries(method(parts, name="fused"))
        expected = by_entry(parts, rule)
        assert list(fused) == list(expected)
        assert list(fused.values()) == pytest.approx(list(expected.values()), rel=1e-6, abs=0)


@given(
    st.lists(st.tuples(DENSITIES, STRENGTHS), min_size=1, max_size=5),
    st.sampled_from([0.05, 0.2, 0.5, 1.0]),
)
@settings(deadline=None, max_examples=80)
def test_ties_equals_its_definition(drawn: list[tuple[float, float]], keep: float) -> None:
    parts = [(adapter(seed, density), one) for seed, (density, one) in enumerate(drawn)]
    fused = entries(fuse.ties(parts, keep=keep, name="fused"))
    expected = slow_ties(parts, keep) if any(one.nnz for one, _ in parts) else {}
    assert list(fused) == list(expected)
    assert list(fused.values()) == pytest.approx(list(expected.values()), rel=1e-6, abs=0)


@pytest.mark.parametrize("method", ["mean", "strongest", "ties"])
def test_no_order_changes_the_result(method: str) -> None:
    parts = [(adapter(seed, 0.8), 0.3 + seed / 7) for seed in range(4)]
    more = {"keep": 0.5} if method == "ties" else {}
    results = [
        getattr(fuse, method)(list(order), name="x", **more)
        for order in itertools.permutations(parts)
    ]
    for result in results[1:]:
        for name, delta in result.deltas.items():
            assert torch.equal(delta.values, results[0].deltas[name].values)
            assert torch.equal(delta.indices, results[0].deltas[name].indices)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("density", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("keep", [0.01, 0.3, 1.0])
def test_pruning_keeps_the_largest(density: float, keep: float, dtype: torch.dtype) -> None:
    one = adapter(1, density, dtype)
    pruned = fuse.prune(one, keep)
    assert entries(pruned) == (slow_prune(one, keep) if one.nnz else {})
    assert set(pruned.deltas) == set(one.deltas)
    assert all(delta.values.dtype == dtype for delta in pruned.deltas.values())


@pytest.mark.parametrize("density", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("drop", [0.0, 0.3, 0.99])
def test_dare_drops_what_was_drawn_and_scales_the_rest(density: float, drop: float) -> None:
    one = adapter(1, density)
    result = fuse.dare(one, drop, torch.Generator().manual_seed(5))
    drawn = torch.rand(one.nnz, generator=torch.Generator().manual_seed(5))
    start = 0
    for name, delta in one.deltas.items():
        # Dense: the whole change times the mask of what stays.
        mask = torch.zeros(delta.numel)
        mask[delta.indices.long()] = (drawn[start : start + delta.nnz] >= drop).float()
        start += delta.nnz
        dense: Tensor = delta.to_dense() * mask.reshape(delta.shape) / (1 - drop)
        assert torch.equal(result.deltas[name].to_dense(), dense)
        assert result.deltas[name].nnz == int(mask.sum())


def test_dare_keeps_the_expected_change() -> None:
    one = Adapter(
        {"w": SparseDelta.from_dense(torch.ones(20_000))}, AdapterInfo("x", training={"steps": "9"})
    )
    result = fuse.dare(one, 0.75, torch.Generator().manual_seed(0))
    assert result.deltas["w"].values.unique().tolist() == [4.0]
    # Six standard deviations of 20,000 draws.
    assert result.nnz == pytest.approx(5000, abs=6 * 61.3)
    again = fuse.prune(result, 0.5)
    assert dict(again.info.training) == {"steps": "9", "thinned": "DARE 0.75, the 0.5 largest"}


def test_what_cannot_be_is_refused() -> None:
    one = adapter(1, 0.5)
    for drop in (-0.1, 1.0):
        with pytest.raises(SettingError, match="drop must be"):
            fuse.dare(one, drop, torch.Generator())
    for keep in (0.0, 1.5):
        with pytest.raises(SettingError, match="keep must be"):
            fuse.prune(one, keep)
        with pytest.raises(SettingError, match="keep must be"):
            fuse.ties([(one, 1.0)], keep=keep, name="x")
    for method in (fuse.mean, fuse.strongest):
        with pytest.raises(SettingError, match="nothing to fuse"):
            method([], name="x")
        assert method([(one, 1.0)], name="x").info.training["fused"].startswith(method.__name__)
