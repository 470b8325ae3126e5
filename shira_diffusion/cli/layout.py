"""Numbers and tables as text for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

_UNITS = ("bytes", "kB", "MB", "GB", "TB")


def size(count: float) -> str:
    """Bytes in the decimal units that hubs and file managers show: 439802 as `440 kB`."""
    unit = 0
    while count >= 1000 and unit < len(_UNITS) - 1:
        count /= 1000
        unit += 1
    return f"{count:.3g} {_UNITS[unit]}"


def bytes_of(path: Path, pattern: str = "*") -> int:
    """The size of a file, or of those files in a folder that `pattern` fits."""
    files = path.rglob(pattern) if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def percent(share: float) -> str:
    """A share of 1 as a percentage: 0.0281 as `2.81 %`."""
    return f"{100 * share:.3g} %"


def pairs(facts: Mapping[str, str]) -> str:
    """`key  value` in two columns; what has no value is left out."""
    known = {key: value for key, value in facts.items() if value}
    width = max(map(len, known), default=0)
    # Text that runs over several lines stays in its column.
    indent = "\n" + " " * (width + 4)
    return "\n".join(
        f"  {key:<{width}}  {value.strip().replace(chr(10), indent)}"
        for key, value in known.items()
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns under their heads: the first one flush left, numbers flush right."""
    lines = [head, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        first, *others = (
            f"{cell:{'<' if column == 0 else '>'}{widths[column]}}"
            for column, cell in enumerate(cells)
        )
        return "  ".join(["", first, *others]).rstrip()

    return "\n".join(line(cells) for cells in lines)


def bars(counts: Mapping[str, int], *, width: int = 40) -> str:
    """A bar beside each count, the longest `width` signs wide; any count but 0 has a sign."""
    most = max(counts.values(), default=0)
    labels = max(map(len, counts), default=0)
    numbers = len(f"{most:,}")
    lengths = {label: -(-count * width // (most or 1)) for label, count in counts.items()}
    return "\n".join(
        f"  {label:>{labels}}  {count:>{numbers},}  {'#' * lengths[label]}".rstrip()
        for label, count in counts.items()
    )
