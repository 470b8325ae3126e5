"""Overlap, AWOM and AWOR against dense products, at both densities' code paths."""

import math

import pytest
import torch

from shira_diffusion import metrics
from shira_diffusion.adapter import Adapter, AdapterInfo
from shira_diffusion.delta import SparseDelta
from shira_diffusion.errors import MismatchError


def adapter(seed: int, share: float, **shapes: tuple[int, ...]) -> Adapter:
    generator = torch.Generator().manual_seed(seed)
    deltas = {}
    for name, shape in shapes.items():
        chosen = torch.rand(shape, generator=generator) < share
        deltas[name] = SparseDelta.from_dense(torch.randn(shape, generator=generator) * chosen)
    return Adapter(deltas, AdapterInfo(f"a{seed}"))


@pytest.mark.parametrize("share", [0.0, 0.03, 0.5, 1.0])
def test_equal_the_dense_products(share: float) -> None:
    shapes = {"linear": (30, 20), "conv": (12, 3, 3, 3), "bias": (9,)}
    a, b = adapter(1, share, **shapes), adapter(2, share, **shapes, own=(4, 4))
    norms, zeros = [0.0], [1.0]
    for name, shape in shapes.items():
        one, two = (
            delta.deltas[name].to_dense().reshape(shape[0], -1).double() for delta in (a, b)
        )
        product = one.t() @ two
        norms.append(math.sqrt(float((product**2).sum())))
        zeros.append(float((product == 0).double().mean()))
    assert metrics.awom(a, b) == pytest.approx(sum(norms) / 4, rel=1e-12)
    assert metrics.awor(a, b) == pytest.approx(sum(zeros) / 4, rel=1e-12)


def test_overlap_counts_the_shared_entries() -> None:
    a, b = adapter(1, 0.3, w=(20, 20), v=(5, 5)), adapter(2, 0.6, w=(20, 20), u=(3, 3))
    one, two = (set(each.deltas["w"].indices.tolist()) for each in (a, b))
    assert metrics.overlap(a, b) == len(one & two) / min(a.nnz, b.nnz)
    assert metrics.overlap(a, a) == 1.0
    assert metrics.overlap(a, adapter(1, 0.0, w=(20, 20))) == 0.0
    assert metrics.density(a) == a.nnz / 425


@pytest.mark.parametrize("share", [0.0, 0.03, 0.5, 1.0])
def test_meetings_are_the_measures_weight_by_weight(share: float) -> None:
    shapes = {"linear": (30, 20), "conv": (12, 3, 3, 3), "bias": (9,)}
    a, b = adapter(1, share, **shapes), adapter(2, share, **shapes, own=(4, 4))
    met = {one.weight: one for one in metrics.meetings(a, b)}
    assert list(met) == sorted([*shapes, "own"])
    for name in shapes:
        one, two = (each.deltas[name].to_dense().flatten().tolist() for each in (a, b))
        both = [(x, y) for x, y in zip(one, two, strict=True) if x and y]
        assert met[name].shared == len(both)
        assert met[name].opposed == sum((x > 0) != (y > 0) for x, y in both)
        sizes = math.hypot(*one) * math.hypot(*two)
        assert met[name].bound == pytest.approx(sizes)
        assert met[name].relative_awom <= 1.0
    assert (met["own"].overlap, met["own"].relative_awom, met["own"].awor) == (0.0, 0.0, 1.0)
    assert sum(one.awom for one in met.values()) / 4 == pytest.approx(metrics.awom(a, b))
    assert sum(one.awor for one in met.values()) / 4 == pytest.approx(metrics.awor(a, b))
    smaller = min(a.nnz, b.nnz)
    assert sum(one.shared for one in met.values()) == round(metrics.overlap(a, b) * smaller)


def test_separate_rows_do_not_interfere() -> None:
    upper, lower = torch.zeros(8, 6), torch.zeros(8, 6)
    upper[:4], lower[4:] = 1.0, 1.0
    a, b = (
        Adapter({"w": SparseDelta.from_dense(dense)}, AdapterInfo("x")) for dense in (upper, lower)
    )
    assert (metrics.awom(a, b), metrics.awor(a, b)) == (0.0, 1.0)
    assert (metrics.awom(a, a), metrics.awor(a, a)) == (24.0, 0.0)


def test_nothing_at_all() -> None:
    empty = Adapter({}, AdapterInfo("x"))
    assert (metrics.awom(empty, empty), metrics.awor(empty, empty)) == (0.0, 1.0)
    hollow = adapter(1, 1.0, w=(0, 4))
    assert (metrics.awom(hollow, hollow), metrics.awor(hollow, hollow)) == (0.0, 1.0)


def test_other_shapes_are_refused() -> None:
    with pytest.raises(MismatchError, match="different models"):
        metrics.awom(adapter(1, 0.5, w=(4, 4)), adapter(2, 0.5, w=(4, 5)))
