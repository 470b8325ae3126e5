"""Trains as `python -m training` does, and takes the times from the run's own event log.

python -m benchmarks.loop_ours RESULT.json STEPS WARM_UP key=value ...
"""

from __future__ import annotations

import sys
from datetime import datetime
from pathlib import Path

from rich.console import Console

from benchmarks.loop_result import LoopResult
from training.run import run
from training.run_folder import RunFolder
from training.settings import load_config


def main() -> None:
    """Do one run, up to a checkpoint after its last timed step."""
    result, steps, _, *settings = sys.argv[1:]
    count = int(steps) + 1
    # The run is left unfinished: an adapter's thumbnail is no part of the loop.
    config = load_config("sdxl-style", [*settings, f"steps={count + 1}", "schedule=constant"])
    run(config, Console(stderr=True), stop_after=count)
    log = RunFolder.of(config).log
    ends = [datetime.fromisoformat(row["time"]).timestamp() for row in log.find("step")]
    peak = next((row for row in log.find("memory") if row["stage"] == "training"), {})
    LoopResult(ends, _gigabytes(peak.get("allocated")), _gigabytes(peak.get("reserved"))).write(
        Path(result)
    )


def _gigabytes(count: int | None) -> float | None:
    return None if count is None else count / 1e9


if __name__ == "__main__":
    main()
