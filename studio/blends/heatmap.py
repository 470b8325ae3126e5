"""Where in the network two adapters meet: measures of weights, gathered by block and by layer."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from shira_diffusion.metrics import Meeting

MEASURES: Mapping[str, Callable[[Sequence[Meeting]], float]] = {
    "Overlap": lambda met: _share(met, "shared", "smaller"),
    "Opposed": lambda met: _share(met, "opposed", "shared"),
    "AWOM": lambda met: sum(one.awom for one in met) / len(met),
    "AWOR": lambda met: sum(one.awor for one in met) / len(met),
}
"""What a map can show, by name: overlap, share of opposite directions, AWOM, AWOR."""

_UNET = re.compile(r"unet\.(down|mid|up)_block(?:s\.(\d+))?\.(?:(attentions|resnets)\.(\d+))?")
_TEXT = re.compile(r"(text_encoder(?:_2)?)\..*?layers\.(\d+)\.")
_ATTENTION = re.compile(r"\.(attn1|attn2|self_attn)\.(?:to_)?(q|k|v|out)")
_KINDS = {"attn1": "self", "attn2": "cross", "self_attn": "self"}
_ROWS = [f"{kind} {part}" for kind in ("self", "cross") for part in ("q", "k", "v", "out")]
_PARTS = ("down", "mid", "up", "text")


@dataclass(frozen=True)
class HeatMap:
    """Values by layer (rows) and block (columns) in the order of the network; None: not touched."""

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: tuple[tuple[float | None, ...], ...]

    @property
    def highest(self) -> float:
        """The largest value."""
        return max((one for row in self.values for one in row if one is not None), default=0.0)

    @property
    def lowest(self) -> float:
        """The smallest value."""
        return min((one for row in self.values for one in row if one is not None), default=0.0)


def heat_map(meetings: Sequence[Meeting], measure: str) -> HeatMap:
    """One of `MEASURES` for each block and kind of layer that is touched."""
    gathered: dict[tuple[str, str], list[Meeting]] = {}
    for one in meetings:
        gathered.setdefault((layer_of(one.weight), block_of(one.weight)), []).append(one)
    rows = sorted({row for row, _ in gathered}, key=_row_order)
    columns = sorted({column for _, column in gathered}, key=_column_order)
    read = MEASURES[measure]
    values = tuple(
        tuple(read(gathered[row, column]) if (row, column) in gathered else None
              for column in columns)
        for row in rows
    )  # fmt: skip
    return HeatMap(tuple(rows), tuple(columns), values)


def block_of(weight: str) -> str:
    """The block that a weight belongs to, as "down 1.0", "mid", "text 2 · 11", else "other"."""
    if match := _UNET.match(weight):
        side, block, _, inner = match.groups()
        if side == "mid":
            return side
        return " ".join(filter(None, (side, ".".join(filter(None, (block, inner))))))
    if match := _TEXT.match(weight):
        number = 2 if match[1].endswith("_2") else 1
        return f"text {number} · {match[2]}"
    return "other"


def layer_of(weight: str) -> str:
    """What a weight does in its block: "self q", "cross out", "feed-forward", "convolution" ..."""
    if match := _ATTENTION.search(weight):
        return f"{_KINDS[match[1]]} {match[2]}"
    if ".ff." in weight or ".mlp." in weight:
        return "feed-forward"
    return "convolution" if ".conv" in weight else "other"


def _share(met: Sequence[Meeting], part: str, whole: str) -> float:
    total = sum(getattr(one, whole) for one in met)
    return sum(getattr(one, part) for one in met) / total if total else 0.0


def _row_order(row: str) -> tuple[int, str]:
    return (_ROWS.index(row) if row in _ROWS else len(_ROWS)), row


def _column_order(column: str) -> tuple[int, list[int], str]:
    side = column.split(" ")[0]
    place = _PARTS.index(side) if side in _PARTS else len(_PARTS)
    return place, [int(one) for one in re.findall(r"\d+", column)], column
