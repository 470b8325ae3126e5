"""Memory for what a file holds, in large pages where the system has them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def empty(count: int, dtype: torch.dtype) -> Tensor:
    """A vector (count,) with any content, on the CPU.

    Every new page is a fault: 38 MB of indices in pages of 4 kB cost more time than decoding them.
    numpy asks the system for huge pages, torch does not.
    """
    if not count:
        return torch.empty(0, dtype=dtype)
    return torch.from_numpy(np.empty(count * dtype.itemsize, np.uint8)).view(dtype)
