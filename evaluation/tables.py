"""The result as a table: one line a method, every figure with its interval."""

from collections.abc import Mapping, Sequence

from evaluation.bootstrap import Estimate
from evaluation.rows import Cost, Row

FIGURES = {
    "single": "single",
    "joint": "together",
    "kept": "kept",
    "loss": "loss",
    "there": "single, pairs' prompts",
    "both": "both seen",
    "single_concept": "concept single",
    "joint_concept": "concept together",
    "single_style": "style single",
    "joint_style": "style together",
    "unrelated": "unrelated prompts",
    "diversity": "diversity",
}
"""The figures of a row, and what the table calls them."""
COLUMNS = ("method", "strength", "active", *FIGURES.values(), "values", "kB", "pictures")

Cells = Mapping[str, str]


def cells(row: Row, cost: Cost | None) -> Cells:
    """Return a row's cells by column, as text."""
    figures = {label: _text(row.figures.get(name)) for name, label in FIGURES.items()}
    price = {"values": "", "kB": ""}
    if cost is not None:
        price = {"values": f"{cost.values:,.0f}", "kB": f"{cost.size / 1000:,.0f}"}
    return {
        "method": row.method,
        "strength": f"{row.strength:g}",
        "active": str(row.active),
        **figures,
        **price,
        "pictures": str(row.pictures),
    }


def filled_columns(table: Sequence[Cells]) -> list[str]:
    """Return the columns in which at least one line has something."""
    return [column for column in COLUMNS if any(line[column] for line in table)]


def markdown(table: Sequence[Cells]) -> str:
    """Return the table as Markdown, columns without any figure left out."""
    columns = filled_columns(table)
    lines = [columns, ["---"] * len(columns), *([line[c] for c in columns] for line in table)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _text(figure: Estimate | None) -> str:
    if figure is None:
        return ""
    return f"{figure.value:.3f} ({figure.low:.3f} to {figure.high:.3f})"
