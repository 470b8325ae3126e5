"""`python -m evaluation report`: tables, plots and a gallery of what the records hold."""

import argparse
import json
from pathlib import Path

from rich.console import Console

from evaluation.command import WORK
from evaluation.headline import headline, write_headline
from evaluation.records import Lines, pack, read_records

COMMITTED = Path(__file__).parent / "records"


def add_report(parser: argparse.ArgumentParser) -> None:
    """Add what a report takes."""
    parser.description = __doc__
    parser.add_argument(
        "folders", type=Path, nargs="*", default=[COMMITTED],
        help="folders of runs, with records.jsonl or .jsonl.gz; the committed one",
    )  # fmt: skip
    parser.add_argument("--headline", action="store_true", help="only kept, shira and lora")
    parser.add_argument("--json", type=Path, help="write the headline there")
    parser.add_argument("--out", type=Path, help="folder of the report; report/ of the run")
    parser.add_argument("--pack", type=Path, help="put records and adapters there, gzipped")


def run_report(options: argparse.Namespace) -> int:
    """Write what is wanted and return 0."""
    records = read_records(_files(options.folders, "records"))
    adapters = [line for file in _files(options.folders, "adapters") for line in Lines(file).read()]
    if options.pack:
        pack(options.pack / "records.jsonl.gz", records)
        pack(options.pack / "adapters.jsonl.gz", adapters)
    if options.headline or options.json:
        found = headline(records)
        if options.json:
            write_headline(found, options.json)
        Console().print_json(json.dumps(found))
    if not options.headline:
        from evaluation.report import write_report

        runs = [folder for folder in options.folders if folder != COMMITTED]
        out = options.out or (runs[0] if runs else WORK) / "report"
        page = write_report(records, adapters, options.folders, out)
        Console().print(f"the report is in {page}", markup=False, soft_wrap=True)
    return 0


def _files(folders: list[Path], name: str) -> list[Path]:
    """Return each folder's file of records, gzipped or not; a folder without one gets its name."""
    found = []
    for folder in folders:
        packed = folder / f"{name}.jsonl.gz"
        found.append(packed if packed.is_file() else folder / f"{name}.jsonl")
    return found
