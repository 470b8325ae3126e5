"""Unions and sums of sparse vectors against Python's sets and dictionaries."""

import itertools

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shira_diffusion.union import Union

SETS = st.lists(st.sets(st.integers(0, 30), max_size=25), min_size=1, max_size=5)


@given(SETS, st.data())
@settings(deadline=None, max_examples=200)
def test_equals_sets_and_dictionaries(sets: list[set[int]], data: st.DataObject) -> None:
    wide = data.draw(st.lists(st.booleans(), min_size=len(sets), max_size=len(sets)))
    kinds = [torch.int64 if one else torch.int32 for one in wide]
    places = [torch.tensor(sorted(s), dtype=kind) for s, kind in zip(sets, kinds, strict=True)]
    generator = torch.Generator().manual_seed(len(sets))
    values = [torch.randn(len(s), generator=generator) for s in sets]
    union = Union(places)
    keys = sorted(set().union(*sets))
    assert union.keys.tolist() == keys
    assert union.keys.dtype == (torch.int64 if any(wide) else torch.int32)
    assert union.meeting.tolist() == [sum(key in s for s in sets) for key in keys]
    entries = [dict(zip(sorted(s), one, strict=True)) for s, one in zip(sets, values, strict=True)]
    rows = union.spread(values)
    assert rows.tolist() == [[float(one.get(key, 0.0)) for key in keys] for one in entries]
    for at, s in zip(union.at, sets, strict=True):
        assert union.keys[at].tolist() == sorted(s)
    for place, key in enumerate(keys):
        total = torch.zeros(())
        for term in sorted((one[key] for one in entries if key in one), key=float):
            total = total + term
        assert float(union.sum(values)[place]) == float(total)


def test_no_order_changes_a_sum() -> None:
    # 1e8 + 1 - 1e8 in fp32 is 0 or 1 by order, so a plain running sum would differ.
    terms = [torch.tensor([one]) for one in (1e8, 1.0, -1e8, 3.0)]
    place = torch.tensor([4], dtype=torch.int32)
    sums = {float(Union([place] * 4).sum(list(order))) for order in itertools.permutations(terms)}
    assert len(sums) == 1
