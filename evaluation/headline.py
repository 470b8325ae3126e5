"""The headline: how much of their accuracy two adapters keep together, for shira and for lora."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evaluation.bootstrap import Record
from evaluation.errors import EvaluationError
from evaluation.rows import Row, rows

METHODS = ("shira", "lora")


def headline(records: Sequence[Record], methods: Sequence[str] = METHODS) -> dict[str, Any]:
    """Return kept with its 95 % interval and single accuracy of each method, two adapters on.

    Raises `EvaluationError` for a method without pictures of one adapter and of two.
    """
    pairs = [
        record for record in records if len(record["adapters"]) < 3 and record["strength"] == 1.0
    ]
    found = {row.method: row for row in rows(pairs) if row.method in methods}
    missing = [name for name in methods if name not in found or "kept" not in found[name].figures]
    if missing:
        raise EvaluationError(f"The records have no pictures yet of {', '.join(missing)}.")
    joint = [one for one in pairs if len(one["adapters"]) == 2]
    return {
        **{name: _figures(found[name]) for name in methods},
        "pairs": len({tuple(record["adapters"]) for record in joint}),
        "seeds": len({record["training_seed"] for record in joint}),
    }


def _figures(row: Row) -> dict[str, float]:
    kept = row.figures["kept"]
    return {
        "kept": round(kept.value, 4),
        "kept_low": round(kept.low, 4),
        "kept_high": round(kept.high, 4),
        "single": round(row.figures["single"].value, 4),
    }


def write_headline(found: dict[str, Any], file: Path) -> None:
    """Write it as JSON."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
