"""`python -m evaluation report`: tables, plots and a gallery of what the records hold."""

import argparse
import json
from pathlib import Path

from rich.console import Console

from evaluation.carry_out import WORK
from evaluation.headline import headline, write_headline
from evaluation.records import found_in, pack

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
    records, adapters = found_in(options.folders)
    if options.pack:
        pack(options.pack / "records.jsonl.gz", records)
        pack(options.pack / "adapters.jsonl.gz", adapters)
    if options.headline or options.json:
        found = headline(records)
        if options.json:
            write_headline(found, options.json)
        Console().print_json(json.dumps(found))
    if not options.headline:
        runs = [folder for folder in options.folders if folder != COMMITTED]
        out = options.out or (runs[0] if runs else WORK) / "report"
        # Only this needs matplotlib.
        from evaluation.report import report_of

        page = report_of(options.folders, out)
        Console().print(f"the report is in {page}", markup=False, soft_wrap=True)
    return 0
