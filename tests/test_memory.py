"""What files are read into: huge pages where there is much to hold, and little memory beside it."""

import mmap
from pathlib import Path

import pytest
import torch

from shira_diffusion.formats import memory


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
@pytest.mark.parametrize("count", [0, 1, 2**23 + 1])
def test_a_vector_is_as_long_as_asked_and_can_be_written(count: int, dtype: torch.dtype) -> None:
    vector = memory.empty(count, dtype)
    vector.fill_(3)
    assert (vector.dtype, tuple(vector.shape)) == (dtype, (count,))
    assert int(vector.sum()) == 3 * count


def test_memory_outlives_the_vector_it_is_seen_through() -> None:
    part = memory.empty(2**23, torch.uint8).fill_(7)[-5:]
    assert part.tolist() == [7] * 5


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")
def test_tensors_somewhat_above_a_huge_page_take_no_second_one() -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE

    size, count = 2**21 + 2**12, 40
    before = resident()
    kept = [memory.empty(size, torch.uint8).fill_(1) for _ in range(count)]
    assert resident() - before < 1.3 * sum(one.nbytes for one in kept)
