"""Writes a report's folder: one page that works from disk, its plots and pictures beside it."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from evaluation.bootstrap import Record
from evaluation.drawings import BASE
from evaluation.failures import failures_in
from evaluation.gallery import gallery
from evaluation.plots import draw_plots
from evaluation.records import found_in
from evaluation.rows import costs, rows, unrelated
from evaluation.tables import cells, filled_columns, markdown

PAGE = "index.html"
FEW_PICTURES = 80
"""Below that the page says that its figures mean nothing."""


def report_of(folders: Sequence[Path], out: Path) -> Path:
    """Write the report of runs, by their folders, into `out` and return the page's file."""
    return write_report(*found_in(folders), folders, out)


def write_report(
    records: Sequence[Record],
    adapters: Sequence[Mapping[str, Any]],
    folders: Sequence[Path],
    out: Path,
) -> Path:
    """Write page, table, plots and pictures into `out` and return the page's file."""
    out.mkdir(parents=True, exist_ok=True)
    found, prices = rows(records), costs(adapters)
    table = [cells(row, prices.get(row.recipe)) for row in found]
    base = unrelated(record for record in records if record["method"] == BASE)
    failures = failures_in(folders, records, adapters)
    failed = "".join(f"- failed: {failure}\n" for failure in failures)
    text = f"{markdown(table)}\n{failed}" if failed else markdown(table)
    (out / "table.md").write_text(text, encoding="utf-8")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True
    )
    page = environment.get_template("page.html").render(
        columns=filled_columns(table),
        table=table,
        base=f"{base.value:.3f}" if base else "",
        pictures=len(records),
        few=FEW_PICTURES,
        failures=failures,
        plots=draw_plots(found, prices, out),
        gallery=gallery(records, _pictures(records, folders, out)),
    )
    (out / PAGE).write_text(page, encoding="utf-8")
    return out / PAGE


def _pictures(records: Sequence[Record], folders: Sequence[Path], out: Path) -> dict[str, str]:
    """Copy the pictures that were kept into the report and return their places by key."""
    found = {}
    target = out / "pictures"
    for record in records:
        name = f"{record['key']}.webp"
        source = next(
            (f / "pictures" / name for f in folders if (f / "pictures" / name).is_file()), None
        )
        if source is not None:
            target.mkdir(exist_ok=True)
            shutil.copyfile(source, target / name)
            found[record["key"]] = f"pictures/{name}"
    return found
