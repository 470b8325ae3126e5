"""Plots of the result: matplotlib, without a window, one PNG each."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from evaluation.bootstrap import Estimate
from evaluation.errors import EvaluationError
from evaluation.rows import Cost, Row

try:
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter
except ModuleNotFoundError as error:
    raise EvaluationError("plots need matplotlib: pip install -r requirements.txt") from error

SPREAD = 10
"""How many times more values the largest method trains before the axis is logarithmic."""
_OURS, _PEERS = "#1f6f8b", "#c2703d"


def draw_plots(rows: Sequence[Row], costs: Mapping[str, Cost], out: Path) -> list[str]:
    """Draw what there are figures for and return the files' names."""
    drawn = {
        "kept.png": _kept(rows),
        "active.png": _against(
            rows, lambda row: row.active, "adapters active at once", lambda row: row.strength == 1
        ),
        "strength.png": _against(
            rows, lambda row: row.strength, "strength", lambda row: row.active == 2
        ),
        "values.png": _values(rows, costs),
    }
    names = []
    for name, figure in drawn.items():
        if figure is not None:
            figure.savefig(out / name, dpi=120, bbox_inches="tight")
            names.append(name)
    return names


def _kept(rows: Sequence[Row]) -> Figure | None:
    """What every method keeps of its accuracy with two adapters, as points with whiskers."""
    chosen = [row for row in rows if _is_plain(row) and "kept" in row.figures]
    if not chosen:
        return None
    figure = Figure(figsize=(7, 0.9 + 0.32 * len(chosen)))
    axes = figure.subplots()
    for place, row in enumerate(chosen):
        kept = row.figures["kept"]
        axes.errorbar(
            kept.value, place, xerr=_whiskers(kept), fmt="o", color=_colour(row), capsize=3
        )
    axes.set_yticks(range(len(chosen)), [row.method for row in chosen])
    axes.invert_yaxis()
    axes.axvline(1.0, color="#bbbbbb", linewidth=1)
    axes.set_xlabel("accuracy kept with two adapters (together / single), 95 % intervals")
    _tidy(figure)
    return figure


def _against(
    rows: Sequence[Row],
    place: Callable[[Row], float],
    label: str,
    chosen: Callable[[Row], bool],
) -> Figure | None:
    """Accuracy together against a number, one line a method that has several of it."""
    lines: dict[str, list[Row]] = {}
    for row in rows:
        if chosen(row) and "joint" in row.figures:
            lines.setdefault(row.method, []).append(row)
    lines = {method: found for method, found in lines.items() if len(found) > 1}
    if not lines:
        return None
    figure = Figure(figsize=(6, 4))
    axes = figure.subplots()
    for method, found in lines.items():
        ordered = sorted(found, key=place)
        joint = [row.figures["joint"] for row in ordered]
        below, above = zip(*(_whiskers(one) for one in joint), strict=True)
        axes.errorbar(
            [place(row) for row in ordered],
            [one.value for one in joint],
            yerr=[[low[0] for low in below], [high[0] for high in above]],
            marker="o",
            capsize=3,
            label=method,
        )
    axes.set_xlabel(label)
    axes.set_ylabel("accuracy together")
    axes.legend(frameon=False)
    _tidy(figure)
    return figure


def _values(rows: Sequence[Row], costs: Mapping[str, Cost]) -> Figure | None:
    """Accuracy together against the number of trained values."""
    chosen = [row for row in rows if _is_plain(row) and row.recipe in costs]
    chosen = [row for row in chosen if row.method == row.recipe and "joint" in row.figures]
    if len(chosen) < 2:
        return None
    figure = Figure(figsize=(6, 4))
    axes = figure.subplots()
    for row in chosen:
        values, joint = costs[row.recipe].values, row.figures["joint"]
        axes.errorbar(
            values, joint.value, yerr=_whiskers(joint), fmt="o", color=_colour(row), capsize=3
        )
        axes.annotate(row.method, (values, joint.value), (5, 4), textcoords="offset points")
    counts = [costs[row.recipe].values for row in chosen]
    if max(counts) > SPREAD * min(counts):
        axes.set_xscale("log")
    else:  # a logarithmic axis this short writes its numbers over each other
        axes.margins(x=0.15)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.set_xlabel("trained values")
    axes.set_ylabel("accuracy together")
    _tidy(figure)
    return figure


def _is_plain(row: Row) -> bool:
    return row.active == 2 and row.strength == 1.0


def _colour(row: Row) -> str:
    return _OURS if row.recipe.startswith("shira") else _PEERS


def _whiskers(figure: Estimate) -> list[list[float]]:
    """How far the interval reaches below and above, as matplotlib wants it: (2, 1)."""
    return [[max(0.0, figure.value - figure.low)], [max(0.0, figure.high - figure.value)]]


def _tidy(figure: Figure) -> None:
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
