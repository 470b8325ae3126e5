"""Loss curves of a run, drawn from its event log."""

import json
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

SMOOTHING = 0.9


def draw_curve(events: Path, stage: str, picture: Path) -> None:
    """Draw the losses of one stage against its time, raw and smoothed, as a PNG."""
    rows = [json.loads(line) for line in events.read_text().splitlines()]
    rows = [row for row in rows if row["stage"] == stage and "loss" in row]
    minutes, losses = [row["s"] / 60 for row in rows], [row["loss"] for row in rows]
    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(minutes, losses, color="0.8", linewidth=1)
    axes.plot(minutes, smoothed(losses), color="C0")
    axes.set(xlabel="minutes", ylabel="loss", yscale="log", title=stage)
    figure.savefig(picture, dpi=120)


def smoothed(losses: Sequence[float]) -> list[float]:
    """Exponential average that starts at the first value."""
    result = [losses[0]]
    for loss in losses[1:]:
        result.append(SMOOTHING * result[-1] + (1 - SMOOTHING) * loss)
    return result
