"""Where the weights of a native file lie in its vectors, as a tree of their names in JSON.

Names share most of their parts, so the tree of SDXL's 560 attention weights has 30 kB where the
names alone would have 45. A leaf is `[shape, entries]`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from shira_diffusion.errors import FormatError
from shira_diffusion.formats import metadata

# No weight is larger; a shape beyond this would overflow 64-bit indices.
_MOST_ENTRIES = 2**48


@dataclass(frozen=True)
class Extent:
    """One weight: its shape, and how many of its entries change."""

    shape: tuple[int, ...]
    nnz: int

    @cached_property
    def numel(self) -> int:
        """How many entries the weight has."""
        return math.prod(self.shape)


Layout = Mapping[str, Mapping[str, Extent]]
"""For each group of values ("fp16"), its weights by name."""


def encode(layout: Layout) -> str:
    """JSON that `decode` reads."""
    groups = {group: _tree(extents) for group, extents in layout.items()}
    return json.dumps(groups, separators=(",", ":"), sort_keys=True)


def decode(text: str, key: str) -> dict[str, dict[str, Extent]]:
    """The inverse of `encode`, names sorted; raises `FormatError`, naming `key`."""
    groups = metadata.parse_json(text, key)
    if not isinstance(groups, dict):
        raise FormatError(f"{key} is not a JSON object")
    return {group: dict(sorted(_leaves(tree, key).items())) for group, tree in groups.items()}


def checked_shape(name: str, shape: Any) -> tuple[int, ...]:
    """A shape out of JSON; raises `FormatError` for one that no weight has."""
    # bool is an int to Python, but true is no size.
    possible = isinstance(shape, list) and len(shape) <= 8 and all(type(n) is int for n in shape)
    if not possible or min(shape, default=0) < 0 or math.prod(shape) > _MOST_ENTRIES:
        raise FormatError(f"the weight {name!r} has an impossible shape")
    return tuple(shape)


def _tree(extents: Mapping[str, Extent]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for name, one in sorted(extents.items()):
        *parts, last = name.split(".")
        node = tree
        for number, part in enumerate(parts):
            inner = node.setdefault(part, {})
            if not isinstance(inner, dict):
                # A weight of this name is here already, so the rest of the longer name stays whole.
                last = ".".join((*parts[number:], last))
                break
            node = inner
        node[last] = [list(one.shape), one.nnz]
    return tree


def _leaves(tree: Any, key: str) -> dict[str, Extent]:
    found: dict[str, Extent] = {}
    # Not by recursion: the tree of a hostile file is as deep as JSON allows.
    waiting: list[tuple[str, Any]] = list(tree.items()) if isinstance(tree, dict) else [("", tree)]
    while waiting:
        name, node = waiting.pop()
        if isinstance(node, dict):
            waiting += [(f"{name}.{part}", one) for part, one in node.items()]
            continue
        if name in found:
            raise FormatError(f"{key} has the weight {name!r} twice")
        found[name] = _extent(name, node)
    return found


def _extent(name: str, leaf: Any) -> Extent:
    if not isinstance(leaf, list) or len(leaf) != 2:
        raise FormatError(f"the weight {name!r} has no shape and number of entries")
    shape, nnz = leaf
    if type(nnz) is not int or not 0 <= nnz <= _MOST_ENTRIES:
        raise FormatError(f"the weight {name!r} has an impossible number of entries")
    return Extent(checked_shape(name, shape), nnz)
