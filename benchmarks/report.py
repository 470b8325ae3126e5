"""What every benchmark is called with, prints and writes."""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import diffusers
import peft
import torch

from benchmarks.measure import Row


@dataclass(frozen=True)
class Report:
    """Rows measured on one machine, and the ratios that matter among their medians."""

    machine: Mapping[str, str]
    rows: Sequence[Row]
    ratios: Mapping[str, float]

    def show(self) -> None:
        """Print the table."""
        print(", ".join(f"{key} {value}" for key, value in self.machine.items()))
        width = max(len(row.name) for row in self.rows)
        print(f"{'':{width}}  {'median ms':>10}  {'quartiles':>21}  rounds")
        for row in self.rows:
            quartiles = f"{row.low_ms:.3f} - {row.high_ms:.3f}"
            print(f"{row.name:{width}}  {row.median_ms:10.3f}  {quartiles:>21}  {row.rounds:6}")
        for name, ratio in self.ratios.items():
            print(f"{name}: {ratio:.3f}")

    def write(self, path: Path) -> None:
        """Write it as JSON."""
        content = {
            "machine": dict(self.machine),
            "rows": [asdict(row) for row in self.rows],
            "ratios": dict(self.ratios),
        }
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def ratio(rows: Sequence[Row], above: str, below: str) -> float:
    """The median of row `above` over that of row `below`."""
    medians = {row.name: row.median_ms for row in rows}
    return round(medians[above] / medians[below], 4)


def parser(description: str | None) -> argparse.ArgumentParser:
    """`--device` and `--json`, which every benchmark has."""
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    best = "cuda" if torch.cuda.is_available() else "cpu"
    made.add_argument("--device", type=torch.device, default=torch.device(best))
    made.add_argument("--json", type=Path, metavar="FILE", help="write the result there too")
    return made


def finish(report: Report, json_file: Path | None) -> None:
    """Print the report, and write it where it is wanted."""
    report.show()
    if json_file is not None:
        report.write(json_file)


def machine(device: torch.device) -> dict[str, str]:
    """What the figures depend on."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return {
        "device": name,
        "threads": str(torch.get_num_threads()),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "peft": peft.__version__,
        "python": platform.python_version(),
    }


def _processor() -> str:
    listing = Path("/proc/cpuinfo")
    lines = listing.read_text(encoding="utf-8").splitlines() if listing.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
