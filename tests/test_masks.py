"""Masks: exactly k entries, sorted and unique, the ones their definition names."""

import math
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from shira_diffusion import masks
from shira_diffusion.delta import check_indices
from shira_diffusion.errors import SettingError

SHAPES = [(), (1,), (7,), (6, 4), (4, 6), (5, 5), (1, 9), (9, 1), (3, 2, 2, 2)]


def inputs(shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)


@pytest.mark.parametrize("kind", masks.KINDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_exactly_k_sorted_unique_entries(kind: str, shape: tuple[int, ...]) -> None:
    weight, gradient = inputs(shape)
    numel = math.prod(shape)
    for k in range(numel + 1):
        chosen = masks.select(
            kind, weight, k, generator=masks.layer_generator(0, "a"), gradient=gradient
        )
        check_indices(chosen, numel)
        assert chosen.numel() == k


@pytest.mark.parametrize(
    ("kind", "score"),
    [
        ("wm", lambda weight, gradient: weight.abs()),
        ("sara", lambda weight, gradient: -weight.abs()),
        ("grad", lambda weight, gradient: gradient.abs()),
        ("snip", lambda weight, gradient: (weight * gradient).abs()),
    ],
)
def test_scores_choose_the_largest(kind: str, score) -> None:  # type: ignore[no-untyped-def]
    weight, gradient = inputs((6, 5))
    ranked = sorted(range(30), key=lambda i: -float(score(weight, gradient).flatten()[i]))
    for k in (1, 7, 29):
        chosen = masks.select(kind, weight, k, gradient=gradient)
        assert chosen.tolist() == sorted(ranked[:k])
        # What the two best and the worst leave free.
        others = [torch.tensor(ranked[:2]).int(), torch.tensor([ranked[0], ranked[-1]]).int()]
        if k < 29:
            chosen = masks.select(kind, weight, k, gradient=gradient, among=others)
            assert chosen.tolist() == sorted(ranked[2 : 2 + k])


def test_short_names_choose_what_select_does() -> None:
    weight, gradient = inputs((6, 5))
    for kind, chosen in {
        "wm": masks.wm(weight, 7),
        "sara": masks.sara(weight, 7),
        "grad": masks.grad(gradient, 7),
        "snip": masks.snip(weight, gradient, 7),
    }.items():
        assert torch.equal(chosen, masks.select(kind, weight, 7, gradient=gradient))


@given(
    kind=st.sampled_from(masks.KINDS),
    shape=st.sampled_from(SHAPES),
    offset=st.integers(0, 7),
    data=st.data(),
)
def test_a_mask_among_others_takes_free_entries_only(
    kind: str, shape: tuple[int, ...], offset: int, data: st.DataObject
) -> None:
    weight, gradient = inputs(shape)
    numel = math.prod(shape)
    places = st.sets(st.integers(0, numel - 1), max_size=numel)
    others = data.draw(st.lists(places, min_size=1, max_size=3))
    taken = set.union(*others)
    free = numel - len(taken)
    choose = partial(
        masks.select,
        kind,
        # Many equal scores, as in bf16.
        weight.round(),
        gradient=gradient.round(),
        offset=offset,
        among=[torch.tensor(sorted(some), dtype=torch.int32) for some in others],
    )
    for k in range(free + 1):
        chosen = choose(k, generator=masks.layer_generator(0, "a"))
        check_indices(chosen, numel)
        assert chosen.numel() == k
        assert taken.isdisjoint(chosen.tolist())
    with pytest.raises(SettingError, match=f"leave {free}; lower the density|cannot choose"):
        choose(free + 1, generator=masks.layer_generator(0, "a"))


def test_a_strided_weight_is_scored_in_its_logical_order() -> None:
    weight = inputs((3, 2, 2, 2))[0]
    strided = weight.to(memory_format=torch.channels_last)
    taken = [torch.tensor([0, 5, 23], dtype=torch.int32)]
    for kind in ("wm", "sara"):
        expected = masks.select(kind, weight, 9, among=taken)
        assert torch.equal(masks.select(kind, strided, 9, among=taken), expected)


def test_rand_among_others_reaches_every_free_entry_about_equally() -> None:
    generator = torch.Generator().manual_seed(0)
    taken = [torch.arange(10, dtype=torch.int32)]
    hits = torch.zeros(20)
    for _ in range(2000):
        chosen = masks.select("rand", hits.reshape(4, 5), 5, generator=generator, among=taken)
        hits[chosen.long()] += 1
    assert not hits[:10].any()
    # Binomial(2000, 1/2): mean 1000, deviation 22.
    assert (hits[10:] - 1000).abs().max() < 120


def test_struct_among_others_keeps_to_diagonal_and_rows() -> None:
    weight = torch.zeros(8, 8)
    first = masks.struct((8, 8), 8 + 14)
    second = masks.select("struct", weight, 7 + 12, offset=1, among=[first])
    rows = {place // 8 for place in second.tolist() if (place % 8 - place // 8) % 8 != 1}
    # The turned diagonal loses two to rows 0 and 4 of the first; a third row makes up for them.
    assert rows == {1, 3, 6}


def test_struct_is_the_diagonal_and_spaced_rows() -> None:
    # 8 x 8: the diagonal, then two whole rows of 7 new entries each.
    mask = torch.zeros(64, dtype=torch.bool)
    mask[masks.struct((8, 8), 8 + 14).long()] = True
    expected = torch.eye(8, dtype=torch.bool)
    expected[[0, 4]] = True
    assert torch.equal(mask.reshape(8, 8), expected)


def test_struct_of_few_entries_spreads_over_the_diagonal() -> None:
    assert masks.struct((8, 8), 4).tolist() == [0, 18, 36, 54]


def test_struct_with_an_offset_turns_the_diagonal_and_moves_the_rows() -> None:
    mask = torch.zeros(64, dtype=torch.bool)
    mask[masks.struct((8, 8), 8 + 14, offset=3).long()] = True
    expected = torch.eye(8, dtype=torch.bool).roll(3, dims=1)
    expected[[3, 7]] = True
    assert torch.equal(mask.reshape(8, 8), expected)


def test_rand_depends_on_its_generator_alone() -> None:
    def drawn(seed: int, name: str) -> list[int]:
        return masks.rand((40, 40), 100, masks.layer_generator(seed, name)).tolist()

    assert drawn(1, "to_q") == drawn(1, "to_q")
    assert drawn(1, "to_q") != drawn(1, "to_k")
    assert drawn(1, "to_q") != drawn(2, "to_q")


def test_layer_generators_are_the_same_on_every_machine() -> None:
    # Pinned: a changed hash would silently change every mask that a seed stands for.
    assert masks.layer_generator(7, "unet.a.to_q.weight").initial_seed() == 3764937170411798506


def test_rand_reaches_every_entry_about_equally() -> None:
    generator = torch.Generator().manual_seed(0)
    hits = torch.zeros(20)
    for _ in range(2000):
        hits[masks.rand((4, 5), 5, generator).long()] += 1
    # Binomial(2000, 1/4): mean 500, deviation 19.
    assert (hits - 500).abs().max() < 100


def test_count() -> None:
    assert [masks.count(1000, share) for share in (1e-9, 0.01, 0.0149, 1.0)] == [1, 10, 15, 1000]
    for share in (0.0, -0.1, 1.01, math.nan):
        with pytest.raises(SettingError, match="density"):
            masks.count(10, share)


def test_what_a_kind_lacks_is_said() -> None:
    weight, gradient = inputs((4, 4))
    with pytest.raises(SettingError, match="generator"):
        masks.select("rand", weight, 2)
    for kind in ("grad", "snip"):
        with pytest.raises(SettingError, match="gradient"):
            masks.select(kind, weight, 2)
    with pytest.raises(SettingError, match="'snip'"):
        masks.select("snipe", weight, 2)
    for k in (-1, 17):
        with pytest.raises(SettingError, match="16 entries"):
            masks.select("wm", weight, k)
        with pytest.raises(SettingError, match="16 entries"):
            masks.struct((4, 4), k)
    with pytest.raises(SettingError, match="NaN"):
        masks.wm(weight * math.nan, 2)
    with pytest.raises(SettingError, match="shape"):
        masks.snip(weight, gradient[0], 2)
    with pytest.raises(SettingError, match=r"no mask 'rnad'.*'rand'"):
        masks.score("rnad", weight)
