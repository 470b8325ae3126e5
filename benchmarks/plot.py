"""Draw the result of a benchmark as bars: medians, with the quartiles as whiskers.

python -m benchmarks.plot RESULT.json PICTURE.png [--log] [--title TEXT]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from matplotlib.figure import Figure

_OURS, _PEERS = "#1f6f8b", "#b9b9b9"


def main() -> None:
    """Read the JSON and write the PNG."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("result", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--log", action="store_true", help="a logarithmic axis")
    parser.add_argument("--title", default="")
    arguments = parser.parse_args()
    content = json.loads(arguments.result.read_text(encoding="utf-8"))
    figure = drawn(content, arguments.title, log=arguments.log)
    figure.savefig(arguments.picture, dpi=120, bbox_inches="tight")


def drawn(content: dict[str, object], title: str, *, log: bool) -> Figure:
    """One bar for each row, ours in colour."""
    rows = content["rows"]
    assert isinstance(rows, list)
    figure = Figure(figsize=(8, 0.7 + 0.36 * len(rows)))
    axes = figure.subplots()
    medians = [row["median_ms"] for row in rows]
    whiskers = [
        [row["median_ms"] - row["low_ms"] for row in rows],
        [row["high_ms"] - row["median_ms"] for row in rows],
    ]
    colours = [_OURS if "ours" in row["name"] else _PEERS for row in rows]
    bars = axes.barh([row["name"] for row in rows], medians, xerr=whiskers, color=colours)
    labels = [f"{median:,.0f}" if median >= 100 else f"{median:.3g}" for median in medians]
    axes.bar_label(bars, labels, padding=6)
    axes.invert_yaxis()
    axes.set_xscale("log" if log else "linear")
    axes.margins(x=0.15)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("milliseconds, median and quartiles")
    machine = content["machine"]
    assert isinstance(machine, dict)
    axes.set_title(f"{title}\n{machine['device']}, torch {machine['torch']}".strip(), fontsize=10)
    return figure


if __name__ == "__main__":
    main()
