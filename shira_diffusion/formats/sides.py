"""How many rows and columns the weights have behind PEFT's coordinates, which do not say it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from shira_diffusion.components import canonical_name
from shira_diffusion.errors import FormatError
from shira_diffusion.formats import metadata

Shapes = Mapping[str, tuple[int, ...]]
# No side of a matrix is longer; float32 counts as far as this.
_LONGEST = 2**24


def stored_shapes(text: str | None) -> dict[str, tuple[int, ...]]:
    """The shapes by name that stand in a file's metadata as JSON, none for None."""
    if text is None:
        return {}
    stated = metadata.parse_json(text, "shira.shapes")
    if not isinstance(stated, dict) or not all(_is_shape(one) for one in stated.values()):
        raise FormatError("shira.shapes does not map names to shapes")
    return {name: tuple(shape) for name, shape in stated.items()}


class Sides:
    """The shapes of weights of which some entries' `coordinates` (2, nnz) are known, by name.

    `known` are shapes that need no working out; `r` is PEFT's, with nnz = r * (rows + columns).
    Where the largest row and column do not settle how that sum is split, a split is taken if it
    is the only one with sides that settled weights, or known ones, have.
    """

    def __init__(self, coordinates: Mapping[str, Tensor], known: Shapes, r: Any):
        self._least = {name: _least(name, places) for name, places in coordinates.items()}
        self._nnz = {name: places.shape[1] for name, places in coordinates.items()}
        self._known = {canonical_name(name): tuple(shape) for name, shape in known.items()}
        self._r = r if type(r) is int and r > 0 else None
        settled = [self._settled(name) for name in self._least if name not in self._known]
        pairs = [*self._known.values(), *(one for one in settled if one is not None)]
        self._sizes = {size for pair in pairs if len(pair) == 2 for size in pair}

    def shape(self, name: str) -> tuple[int, int]:
        """Rows and columns of the weight; raises `FormatError` where they cannot be told."""
        rows, columns = self._least[name]
        known = self._known.get(canonical_name(name))
        if known is not None:
            if len(known) != 2 or known[0] < rows or known[1] < columns:
                raise FormatError(
                    f"the indices of {name!r} reach row {rows - 1} and column {columns - 1}, "
                    f"outside of its weight of shape {known}"
                )
            return known[0], known[1]
        settled = self._settled(name)
        if settled is not None:
            return settled
        total = self._total(name)
        likely = [
            one for one in range(rows, total - columns + 1) if {one, total - one} <= self._sizes
        ]
        if len(likely) == 1:
            return likely[0], total - likely[0]
        raise FormatError(
            f"how many rows and columns {name!r} has cannot be told from PEFT's file; give the "
            "shapes of the base's weights (shapes=...)"
        )

    def _total(self, name: str) -> int:
        """Rows and columns together."""
        if self._r is None:
            raise FormatError(
                f"without adapter_config.json and its r the shape of {name!r} cannot be told; "
                "copy the whole folder, or give the shapes of the base's weights (shapes=...)"
            )
        total, rest = divmod(self._nnz[name], self._r)
        if rest or total < sum(self._least[name]):
            raise FormatError(
                f"the {self._nnz[name]} entries of {name!r} are not r = {self._r} times its rows "
                "and columns"
            )
        return total

    def _settled(self, name: str) -> tuple[int, int] | None:
        if self._r is None:
            return None
        total = self._total(name)
        rows, columns = self._least[name]
        return (rows, columns) if rows + columns == total else None


def _least(name: str, coordinates: Tensor) -> tuple[int, int]:
    """The fewest rows and columns that hold all coordinates."""
    if coordinates.shape[1] == 0:
        return 1, 1
    lowest, highest = int(coordinates.min()), coordinates.amax(dim=1)
    rows, columns = (int(one) + 1 for one in highest)
    if lowest < 0 or max(rows, columns) > _LONGEST:
        raise FormatError(f"the indices of {name!r} run from {lowest} to {max(rows, columns) - 1}")
    return rows, columns


def _is_shape(shape: object) -> bool:
    return (
        isinstance(shape, list)
        and len(shape) <= 8
        and all(type(one) is int and 0 <= one <= _LONGEST for one in shape)
        and math.prod(shape) < 2**62
    )
