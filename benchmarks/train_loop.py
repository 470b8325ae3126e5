"""The whole training loop of `python -m training` and that of diffusers' example script.

    python -m benchmarks.train_loop --peer-script train_dreambooth_lora_sdxl.py
        [--device cpu|cuda] [--json FILE] [--only NAME ...] [--steps N] [--base FOLDER]

The script is `examples/dreambooth/train_dreambooth_lora_sdxl.py` of diffusers, run unchanged. Both
train on a checkpoint of SDXL's architecture with random weights, 1024 px, batch 1, bf16, the
attention's weights, AdamW, clipped gradients; on a CPU on the embedded base, in fp32. Each row is a
process of its own. A step is everything between two steps' ends: the batch, forward, backward, the
update, the log. The script encodes each picture in every step; rows "latents cached" are what it
would be without. Ours are cached. Memory is that of the steps, after the warm-up.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import torch

from benchmarks.loop_base import EMBEDDED, write_base, write_images
from benchmarks.loop_result import LoopResult
from benchmarks.report import Report, finish, machine, parser, ratio
from benchmarks.train_step import TrainingRow

OURS = {
    "ours": ("method=shira",),
    "ours, compiled": ("method=shira", "compile=true"),
    "ours, lora r64": ("method=lora", "rank=64"),
}
"""Settings of our rows, next to those that all share."""

PEERS = {
    "peer, lora r64": ("--rank", "64"),
    "peer, lora r16": ("--rank", "16"),
    "peer, lora r64, latents cached": ("--rank", "64", "--latents-cached"),
}
"""Options of the script's rows; `--latents-cached` is one of ours that watch it."""

CHECKPOINTING = {"": False, ", checkpointing": True}
WARM_UP = 5
PROMPT = "a photo of sks dog"


@dataclass(frozen=True)
class Work:
    """What all rows have in common: the base, the pictures, where to write, how long to train."""

    device: torch.device
    base: Path
    images: Path
    scratch: Path
    steps: int
    script: Path | None

    @property
    def side(self) -> int:
        """The pictures' side in pixels."""
        return 1024 if self.device.type == "cuda" else 128

    def run(self, name: str) -> TrainingRow:
        """Do one row in a process of its own."""
        plain, _, more = name.partition(", checkpointing")
        assert not more, name
        checkpointing = name != plain
        place = self.scratch / name.replace(", ", "-").replace(" ", "-")
        place.mkdir()
        result = place / "result.json"
        counts = [str(result), str(self.steps), str(WARM_UP)]
        rest = (
            ["benchmarks.loop_ours", *counts, *self._settings(plain, place, checkpointing)]
            if plain in OURS
            else ["benchmarks.loop_peer", *counts, *self._options(plain, place, checkpointing)]
        )
        subprocess.run([sys.executable, "-m", *rest], check=True, env=self._environment())
        return row(name, LoopResult.read(result))

    def _settings(self, name: str, place: Path, checkpointing: bool) -> list[str]:
        return [
            *OURS[name],
            f"base={self.base}",
            f"data={self.images}",
            f"instance_prompt={PROMPT}",
            "name=loop",
            f"run={place / 'run'}",
            f"adapters_dir={place / 'adapters'}",
            f"cache_dir={self.scratch / 'cache'}",
            f"device={self.device}",
            f"resolution={self.side}",
            "batch=1",
            "sample_every=0",
            "checkpoint_every=1000000",
            f"gradient_checkpointing={str(checkpointing).lower()}",
        ]

    def _options(self, name: str, place: Path, checkpointing: bool) -> list[str]:
        options = list(PEERS[name])
        watched = [option for option in options if option == "--latents-cached"]
        return [
            *watched,
            str(self.script),
            *(option for option in options if option not in watched),
            *("--pretrained_model_name_or_path", str(self.base)),
            *("--instance_data_dir", str(self.images)),
            *("--instance_prompt", PROMPT),
            *("--output_dir", str(place / "out")),
            *("--resolution", str(self.side)),
            *("--train_batch_size", "1"),
            *("--learning_rate", "1e-4"),
            *("--max_train_steps", "1000000"),
            *("--checkpointing_steps", "1000000"),
            *("--mixed_precision", "bf16" if self.device.type == "cuda" else "no"),
            *("--seed", "0"),
            *(["--gradient_checkpointing"] if checkpointing else []),
        ]

    def _environment(self) -> dict[str, str]:
        away = {} if self.device.type == "cuda" else {"ACCELERATE_USE_CPU": "true"}
        return {**os.environ, "HF_HUB_OFFLINE": "1", **away}


def row(name: str, result: LoopResult) -> TrainingRow:
    """The median step of a process, and its memory."""
    seconds = result.seconds(WARM_UP)
    low, middle, high = (1000 * one for one in statistics.quantiles(seconds, n=4))
    times = (round(middle, 1), round(low, 1), round(high, 1))
    return TrainingRow(name, *times, len(seconds), result.allocated)


def names(scripted: bool) -> list[str]:
    """Every row that can be measured, with and without the script."""
    methods = [*OURS, *(PEERS if scripted else ())]
    return [method + suffix for suffix, method in product(CHECKPOINTING, methods)]


def ratios(rows: Sequence[TrainingRow]) -> dict[str, float]:
    """How many times as long as ours each other row takes, and as much memory, like with like."""
    measured = {row.name: row for row in rows}
    result = {}
    for name in measured:
        ours = f"ours{', checkpointing' if name.endswith(', checkpointing') else ''}"
        if name == ours or ours not in measured:
            continue
        result[f"{name} / ours"] = ratio(rows, name, ours)
        above, below = measured[name].peak_gb, measured[ours].peak_gb
        if above and below:
            result[f"{name} / ours, memory"] = round(above / below, 4)
    return result


def arguments() -> argparse.Namespace:
    """The command line."""
    made = parser(__doc__)
    made.add_argument("--peer-script", type=Path, metavar="FILE", help="without it, only ours")
    made.add_argument("--only", nargs="+", choices=names(scripted=True), metavar="NAME")
    made.add_argument("--steps", type=int, default=25, help="steps of each row")
    made.add_argument("--base", type=Path, help="where SDXL's checkpoint is, or will be kept")
    return made.parse_args()


def main() -> None:
    """Measure row after row, and report."""
    given = arguments()
    if given.device.type == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        base = given.base or place / "base"
        if given.device.type == "cuda":
            write_base(base, given.device)
            torch.cuda.empty_cache()
        else:
            base = EMBEDDED
        work = Work(given.device, base, place / "images", place, given.steps, given.peer_script)
        write_images(work.images, work.side)
        rows = []
        for name in given.only or names(scripted=given.peer_script is not None):
            rows.append(work.run(name))
            print(rows[-1], flush=True)
    finish(Report(machine(given.device), rows, ratios(rows)), given.json)


if __name__ == "__main__":
    main()
