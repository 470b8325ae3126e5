"""Memory for what a file holds, in huge pages where the system has them."""

from __future__ import annotations

import contextlib
import mmap

import torch
from torch import Tensor

_HUGE = 2**21
# The last page is half empty on average, which should not weigh: of four it is an eighth.
_WORTH_IT = 4 * _HUGE


def empty(count: int, dtype: torch.dtype) -> Tensor:
    """A vector (count,) with any content, on the CPU.

    Every new page is a fault: for 38 MB of indices, faults of 4 kB pages cost more time than the
    decoding. torch leaves it at that; Linux gives huge pages to who asks.
    """
    size = count * dtype.itemsize
    if size < _WORTH_IT or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty(count, dtype=dtype)
    # Only what begins and ends with a huge page lies in huge pages from end to end.
    whole = -(-size // _HUGE) * _HUGE
    pages = mmap.mmap(-1, whole, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    # A kernel may be built without them.
    with contextlib.suppress(OSError):
        pages.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(pages, dtype=dtype, count=count)
