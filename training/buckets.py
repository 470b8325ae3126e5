"""Sizes of about one area for pictures of any aspect ratio, so that little is cut off them.

As SDXL was trained: https://arxiv.org/abs/2307.01952, section 2.3 and appendix I.
"""

import math
from collections.abc import Sequence

from training.images import Size

# Between two buckets' sides lie so many steps of a square's: 64 px at 1024, as in SDXL's list.
_STEPS = 16


def bucket_sizes(side: int, multiple: int) -> tuple[Size, ...]:
    """Return the sizes of pictures of at most `side`**2 pixels, from 1:4 to 4:1, flattest first.

    Their sides are multiples of `multiple` pixels.
    """
    step = multiple * max(1, round(side / _STEPS / multiple))
    square = max(step, side // step * step)
    shorter = range(-(-side // 2 // step) * step, square + 1, step)
    wide = [(short, max(short, side * side // short // step * step)) for short in shorter]
    return tuple(sorted({*wide, *((width, height) for height, width in wide)}))


def nearest(size: Size, sizes: Sequence[Size]) -> Size:
    """Return which of `sizes` is most like `size` in its aspect ratio, the larger of equals."""

    def unlike(other: Size) -> tuple[float, int]:
        return abs(_flatness(size) - _flatness(other)), -math.prod(other)

    return min(sizes, key=unlike)


def _flatness(size: Size) -> float:
    height, width = size
    return math.log(width / height)
