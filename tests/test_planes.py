"""Indices in two planes: as their definition says, and refused where no indices have them."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shira_diffusion.delta import index_dtype
from shira_diffusion.errors import FormatError
from shira_diffusion.formats import planes
from shira_diffusion.formats.layout import Extent

EDGES = [0, 1, 254, 255, 256, 257, 511, 512, 513, 767, 768, 5000]


def by_definition(weights: list[list[int]]) -> tuple[list[int], list[int]]:
    """Both planes, one entry at a time."""
    low, skips, entry, owner = [], [], 0, 0
    for indices in weights:
        before = -1
        for index in indices:
            gap = index - before - 1
            low.append(gap % 256)
            for _ in range(gap // 256):
                skips += [255] * ((entry - owner) // 255) + [(entry - owner) % 255]
                owner = entry
            before = index
            entry += 1
    return low, skips


def extents(counts: list[int], numel: int) -> dict[str, Extent]:
    return {f"w{number}": Extent((numel,), count) for number, count in enumerate(counts)}


@given(
    st.lists(st.sets(st.sampled_from(EDGES) | st.integers(0, 9000), max_size=30), max_size=5),
    st.integers(0, 3) | st.just(600),
    st.sampled_from([10_000, 2**31 - 1, 2**31, 2**48]),
)
@settings(max_examples=200, deadline=None)
def test_planes_equal_their_definition(weights: list[set[int]], dense: int, numel: int) -> None:
    # A dense run before a far entry brings the skips' own steps beyond a byte.
    lists = [sorted(one | set(range(dense))) for one in weights]
    low, skips = planes.encode(torch.tensor(one, dtype=index_dtype(numel)) for one in lists)
    assert low.dtype == skips.dtype == torch.uint8
    assert (low.tolist(), skips.tolist()) == by_definition(lists)
    counts = [len(one) for one in lists]
    indices = planes.decode(extents(counts, numel), low, skips)
    assert indices.dtype == index_dtype(numel if sum(counts) else 0)
    assert [one.tolist() for one in indices.split(counts)] == lists


def test_a_large_weight_at_random() -> None:
    generator = torch.Generator().manual_seed(0)
    for density in (0.001, 0.01, 0.3):
        parts = [
            (torch.rand(numel, generator=generator) < density).nonzero().squeeze(1).int()
            for numel in (400_000, 100, 200_000)
        ]
        decoded = planes.decode(
            {str(n): Extent((400_000,), one.numel()) for n, one in enumerate(parts)},
            *planes.encode(parts),
        )
        assert torch.equal(decoded, torch.cat(parts))


def decode(low: list[int], skips: list[int], counts: list[int], numel: int) -> torch.Tensor:
    codes = (torch.tensor(code, dtype=torch.uint8) for code in (low, skips))
    return planes.decode(extents(counts, numel), *codes)


@pytest.mark.parametrize(
    ("low", "skips", "counts", "fault"),
    [
        ([9, 0], [], [2], "'w0': its gaps reach entry 10, but it has 10"),
        ([9, 9], [], [1, 1], None),
        ([9, 10], [], [1, 1], "'w1': its gaps reach entry 10"),
        ([0, 0], [1], [1, 1], "'w1': its gaps reach entry 256"),
        ([0, 0], [0], [0, 2], "'w1': its gaps reach entry 257"),
        ([0], [1], [1], "belongs to entry 1, but there are 1"),
        ([0], [0, 255], [1], "end in a step to none"),
        ([], [0], [], "belongs to entry 0, but there are 0"),
        ([], [0], [0], "belongs to entry 0, but there are 0"),
        ([0], [255, 0], [1], "belongs to entry 255"),
    ],
)
def test_planes_of_no_indices_are_refused(
    low: list[int], skips: list[int], counts: list[int], fault: str | None
) -> None:
    if fault is None:
        assert decode(low, skips, counts, 10).tolist() == [9, 9]
        return
    with pytest.raises(FormatError, match=fault):
        decode(low, skips, counts, 10)


def test_no_gap_is_so_long_that_its_sum_overflows() -> None:
    # 2^24 skips of 256 make 2^32: in 32 bits the entry would be number 0 again.
    skips = torch.zeros(2**24, dtype=torch.uint8)
    with pytest.raises(FormatError, match=f"reach entry {2**32}"):
        planes.decode(extents([1], 10), torch.zeros(1, dtype=torch.uint8), skips)
    far = planes.decode(extents([1], 2**33), torch.zeros(1, dtype=torch.uint8), skips)
    assert far.tolist() == [math.prod([2**24, 256])]
