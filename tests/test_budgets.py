"""Budgets that all weights share: hit exactly, and spent where the scores say."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from shira_diffusion import budgets, masks
from shira_diffusion.errors import SettingError

# Few different numbers make many ties; the rest are the edges of fp32.
NUMBERS = st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.5, 1e-45, -1e-45, 3e38, -3e38, 1.0000001])
WEIGHTS = st.dictionaries(
    st.sampled_from("abcd"), st.lists(NUMBERS | st.floats(width=32, allow_nan=False)), min_size=1
)


@given(sizes=st.dictionaries(st.text(max_size=3), st.integers(0, 50)), data=st.data())
def test_by_size_is_within_one_of_the_share(sizes: dict[str, int], data: st.DataObject) -> None:
    total = data.draw(st.integers(0, sum(sizes.values())))
    counts = budgets.by_size(sizes, total)
    assert sum(counts.values()) == total
    assert counts.keys() == sizes.keys()
    for name, size in sizes.items():
        assert 0 <= counts[name] <= size
        assert abs(counts[name] - Fraction(size * total, max(1, sum(sizes.values())))) < 1


@given(weights=WEIGHTS, data=st.data())
def test_by_score_finds_the_largest_of_all(
    weights: dict[str, list[float]], data: st.DataObject
) -> None:
    scores = {name: torch.tensor(values, dtype=torch.float32) for name, values in weights.items()}
    total = data.draw(st.integers(0, sum(map(len, weights.values()))))
    counts = budgets.by_score(scores, scores.__getitem__, total)
    # Sorting is stable: of equal scores, those of earlier names come first.
    ranked = sorted(
        ((-value, name) for name in scores for value in scores[name].tolist()),
        key=lambda pair: pair[0],
    )
    expected = dict.fromkeys(scores, 0)
    for _, name in ranked[:total]:
        expected[name] += 1
    assert counts == expected


@pytest.mark.parametrize("kind", masks.SCORED)
def test_masks_of_such_counts_are_the_best_of_the_model(kind: str) -> None:
    generator = torch.Generator().manual_seed(0)
    scale = {"a": 1.0, "b": 3.0, "c": 0.2}
    weights = {name: torch.randn(9, 7, generator=generator) * by for name, by in scale.items()}
    gradients = {name: torch.randn(9, 7, generator=generator) for name in scale}

    def score(name: str) -> Tensor:
        return masks.score(kind, weights[name], gradients[name])

    counts = budgets.by_score(weights, score, 40)
    chosen: list[float] = []
    for name, k in counts.items():
        indices = masks.select(kind, weights[name], k, gradient=gradients[name])
        chosen += score(name).flatten()[indices.long()].tolist()
    every = torch.cat([score(name).flatten() for name in weights])
    assert sorted(chosen) == sorted(every.topk(40).values.tolist())
    assert len(set(counts.values())) > 1


def test_impossible_totals_are_refused() -> None:
    scores = {"a": torch.ones(3)}
    for total in (-1, 4):
        with pytest.raises(SettingError, match="3 entries"):
            budgets.by_size({"a": 3}, total)
        with pytest.raises(SettingError, match="3 entries"):
            budgets.by_score(scores, scores.__getitem__, total)


def test_what_other_adapters_have_comes_last() -> None:
    weights = {"a": torch.arange(1.0, 5.0), "b": torch.arange(3.0, 7.0)}
    among = {"a": [], "b": [torch.tensor([2, 3], dtype=torch.int32)]}

    def score(name: str) -> Tensor:
        return masks.score("wm", weights[name], among=among[name])

    assert score("b").tolist() == [3.0, 4.0, -math.inf, -math.inf]
    assert budgets.by_score(weights, score, 3) == {"a": 2, "b": 1}
