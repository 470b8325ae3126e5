"""Runs diffusers' DreamBooth LoRA script for SDXL as it is, and watches it from outside.

    python -m benchmarks.loop_peer RESULT.json STEPS WARM_UP [--latents-cached] SCRIPT ARGUMENT ...

The script tells its progress bar about each step right after it has read that step's loss off the
device: that is when a step ends. After the last one the process ends, too: what the script does
then (a second pipeline, a file) is no part of its loop.
"""

from __future__ import annotations

import importlib.util
import runpy
import sys
import time
from pathlib import Path
from typing import Any

import torch
import tqdm.auto
from diffusers import AutoencoderKL

from benchmarks import loop_transforms
from benchmarks.loop_result import LoopResult, peaks


class _Watch(tqdm.auto.tqdm):
    """A progress bar that writes down when it hears of a step."""

    result: Path
    steps: int
    warm_up: int
    ends: list[float]

    def set_postfix(self, *arguments: Any, **values: Any) -> None:
        """Note the end of a step, and end the process after the last."""
        super().set_postfix(*arguments, **values)
        self.ends.append(time.perf_counter())
        if len(self.ends) == self.warm_up and torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        if len(self.ends) > self.steps:
            LoopResult(self.ends, **peaks()).write(self.result)
            raise SystemExit(0)


def _cache_latents() -> None:
    """Have the VAE encode one picture and give its latents for all, as a cache would."""
    encode = AutoencoderKL.encode
    known: list[Any] = []

    def cached(self: AutoencoderKL, *arguments: Any, **keywords: Any) -> Any:
        if not known:
            known.append(encode(self, *arguments, **keywords))
        return known[0]

    AutoencoderKL.encode = cached


def _find_torchvision() -> None:
    """The script's picture transforms; where torchvision is missing, those that it uses."""
    if importlib.util.find_spec("torchvision") is None:
        loop_transforms.install()


def main() -> None:
    """Run the script under watch."""
    result, steps, warm_up, *rest = sys.argv[1:]
    if rest[0] == "--latents-cached":
        _cache_latents()
        rest = rest[1:]
    _Watch.result, _Watch.steps, _Watch.warm_up, _Watch.ends = (
        Path(result),
        int(steps),
        int(warm_up),
        [],
    )
    _find_torchvision()
    tqdm.auto.tqdm = _Watch
    sys.argv = rest
    runpy.run_path(rest[0], run_name="__main__")


if __name__ == "__main__":
    main()
