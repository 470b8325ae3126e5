"""A training step of ours and of the peers: its time, and on CUDA its peak memory.

    python -m benchmarks.train_step [--device cpu|cuda] [--json FILE] [--methods ours ...]

SDXL's UNet with random weights, 1024 px, batch 1, bf16, its attention trained; on a CPU a small
UNet of the same kind in fp32, eager unless `--modes` says otherwise. A step is forward, backward,
clipping, AdamW and the write-back. `frozen` is the floor: forward and the input's gradient.
"""

from __future__ import annotations

import argparse
import gc
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial

import diffusers
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from benchmarks.measure import Case, Row, measure
from benchmarks.report import Report, finish, machine, parser, ratio
from benchmarks.train_methods import METHODS, Trained
from benchmarks.train_unet import sdxl_inputs, sdxl_unet
from shira_diffusion.captured import CapturedPass

MODES = ("eager", "compiled", "graphed", "compiled and graphed")
"""How the host runs the step: compiled block by block, or its passes as one CUDA graph."""
RATIOS = {
    "ours_over_lora_r64": ("ours, eager", "lora_r64, eager"),
    "ours_over_lora_r64_checkpointing": (
        "ours, eager, checkpointing",
        "lora_r64, eager, checkpointing",
    ),
    "ours_over_peft_shira": ("ours, eager", "peft_shira, eager"),
    "ours_over_frozen_compiled": ("ours, compiled", "frozen, compiled"),
    "graphed_over_compiled": ("ours, compiled and graphed", "ours, compiled"),
}
_WARM_UP = 3


@dataclass(frozen=True)
class TrainingRow(Row):
    """With the most memory that was in use at once, in GB; None where there is no such count."""

    peak_gb: float | None

    def __str__(self) -> str:
        peak = "" if self.peak_gb is None else f", {self.peak_gb:.2f} GB"
        return f"{self.name}: {self.median_ms:.1f} ms{peak}"


@dataclass(frozen=True)
class Setup:
    """One way to train: a method, how the host runs it, and whether activations are kept."""

    method: str
    mode: str
    checkpointing: bool

    @property
    def name(self) -> str:
        """As table and file have it."""
        return f"{self.method}, {self.mode}{', checkpointing' if self.checkpointing else ''}"

    def run(self, device: torch.device, rounds: int) -> TrainingRow:
        """Train a fresh UNet this way and time its steps."""
        unet = sdxl_unet(device)
        trained = METHODS[self.method](unet)
        if self.checkpointing:
            unet.enable_gradient_checkpointing(partial(checkpoint, use_reentrant=False))
        if "compiled" in self.mode:
            unet.compile_repeated_blocks()
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
        step = training_step(unet, trained, graphed="graphed" in self.mode)
        (row,) = measure([Case(self.name, step)], device, rounds=rounds, warm_up=_WARM_UP)
        peak = torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else None
        return TrainingRow(**asdict(row), peak_gb=peak)


def training_step(unet: nn.Module, trained: Trained, *, graphed: bool) -> Callable[[], object]:
    """What is timed: a whole step on one batch, again and again."""
    inputs = sdxl_inputs(unet)
    loss = partial(noise_loss, unet, trained)
    if not trained.parameters:
        inputs["latents"].requires_grad_(True)
        return lambda: loss(**inputs).backward()
    fused = inputs["latents"].is_cuda
    optimizer = torch.optim.AdamW(trained.parameters, lr=1e-4, weight_decay=0.0, fused=fused)
    passes: Callable[[], object] = lambda: loss(**inputs).backward()  # noqa: E731
    if graphed:
        assert trained.tuner is not None
        passes = partial(CapturedPass(trained.tuner, loss, inputs), **inputs)

    def step() -> None:
        passes()
        nn.utils.clip_grad_norm_(trained.parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        trained.write()

    return step


def noise_loss(
    unet: nn.Module,
    trained: Trained,
    latents: Tensor,
    noise: Tensor,
    timesteps: Tensor,
    prompt_embeds: Tensor,
    pooled: Tensor,
    time_ids: Tensor,
) -> Tensor:
    """The mean squared error of the predicted noise, as in training."""
    conditions = {"text_embeds": pooled, "time_ids": time_ids}
    with trained.autocast():
        predicted = unet(latents, timesteps, prompt_embeds, added_cond_kwargs=conditions).sample
    return nn.functional.mse_loss(predicted.float(), noise.float())


def setups(methods: Sequence[str], modes: Sequence[str]) -> list[Setup]:
    """Every method in every mode; CUDA graphs are for ours, with activations kept."""
    graphed = [mode for mode in modes if "graphed" in mode]
    plain = [mode for mode in modes if mode not in graphed]
    found = [
        Setup(method, mode, checkpointing)
        for mode in plain
        for method in methods
        for checkpointing in (False, True)
    ]
    return found + [Setup("ours", mode, False) for mode in graphed if "ours" in methods]


def ratios(rows: Sequence[TrainingRow]) -> dict[str, float]:
    """Those of `RATIOS` for which both rows were measured, of their times and of their memory."""
    peaks = {row.name: row.peak_gb for row in rows}
    result = {}
    for name, (above, below) in RATIOS.items():
        if above in peaks and below in peaks:
            result[name] = ratio(rows, above, below)
            first, second = peaks[above], peaks[below]
            if first and second:
                result[f"memory_{name}"] = round(first / second, 4)
    return result


def arguments() -> argparse.Namespace:
    """The command line."""
    made = parser(__doc__)
    made.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    made.add_argument("--modes", nargs="+", choices=MODES)
    made.add_argument("--rounds", type=int, default=10)
    return made.parse_args()


def main() -> None:
    """Measure one way after the other, each on its own UNet, and report."""
    given = arguments()
    diffusers.logging.set_verbosity_error()
    modes = given.modes or (MODES if given.device.type == "cuda" else ["eager"])
    rows = []
    for setup in setups(given.methods, modes):
        rows.append(setup.run(given.device, given.rounds))
        print(rows[-1], flush=True)
        torch.compiler.reset()
        gc.collect()
    finish(Report(machine(given.device), rows, ratios(rows)), given.json)


if __name__ == "__main__":
    main()
