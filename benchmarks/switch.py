"""Switching from one adapter to another: ours, and LoRA through diffusers and PEFT.

    python -m benchmarks.switch [--device cpu|cuda] [--json FILE]

On CUDA SDXL's UNet in bf16; `lora_r64_over_ours` is for it. On a CPU a small UNet in fp32 and then
all 560 SDXL-shaped attention matrices in fp32 (6 GB of memory), which `lora_r64_over_ours` is for.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import peft
import torch
from diffusers import UNet2DConditionModel
from peft.tuners.lora import LoraLayer
from torch import nn

from benchmarks import models
from benchmarks.measure import Case, Row, measure
from benchmarks.report import Report, finish, machine, parser, ratio
from shira_diffusion import AdapterSwitcher, Residency

A_TO_B, STRENGTH = "ours, A -> B", "ours, another strength"
FIRST = "ours, A -> B, B never used before"
# Where adapters come from when none may stay where the weights are, and the host's budget for it.
WAITING = {"cuda": "ours, A -> B from pinned memory", "cpu": "ours, A -> B from disk"}
AFAR = {"cuda": None, "cpu": 0}


def main() -> None:
    """Measure and report."""
    arguments = parser(__doc__).parse_args()
    device = arguments.device
    rows = unet_rows(device)
    if device.type == "cuda":
        ratios = {
            "lora_r64_over_ours": ratio(rows, "LoRA r64, unfuse + fuse", A_TO_B),
            "lora_r16_over_ours": ratio(rows, "LoRA r16, unfuse + fuse", A_TO_B),
            "lora_r64_toggle_over_ours": ratio(rows, "LoRA r64, set_adapters", A_TO_B),
        }
    else:
        rows = [*rows, *matrix_rows(device)]
        ours = matrix(A_TO_B)
        ratios = {
            "lora_r64_over_ours": ratio(rows, matrix("LoRA r64, unfuse + fuse"), ours),
            "lora_r16_over_ours": ratio(rows, matrix("LoRA r16, unfuse + fuse"), ours),
            "small_unet_lora_r64_over_ours": ratio(rows, "LoRA r64, unfuse + fuse", A_TO_B),
        }
    finish(Report(machine(device), rows, ratios), arguments.json)


def unet_rows(device: torch.device) -> list[Row]:
    """Ours on a plain UNet, then LoRAs injected into it."""
    unet = models.unet_in_use(device)
    rows = our_rows(unet, models.attention(unet), device, rounds=30)
    for rank in (64, 16):
        names = [f"r{rank}_{which}" for which in "ab"]
        for name in names:
            unet.add_adapter(models.lora_config(rank), name)
        models.fill_factors(unet, names)
        rows += measure(unet_lora_cases(unet, rank, names), device, rounds=10)
        unet.delete_adapters(names)
    return rows


def matrix(name: str) -> str:
    """A row's name when it is measured on the matrices alone."""
    return f"560 matrices, {name}"


def matrix_rows(device: torch.device) -> list[Row]:
    """The same on all of SDXL's attention matrices and nothing else."""
    model = models.Matrices()
    rows = our_rows(model, dict(model.named_parameters()), device, rounds=8)
    for rank in (64, 16):
        names = [f"r{rank}_{which}" for which in "ab"]
        for name in names:
            config = models.lora_config(rank, r"layers\.\d+")
            peft.inject_adapter_in_model(config, model, adapter_name=name)
        models.fill_factors(model, names)
        merge = Case(f"LoRA r{rank}, unfuse + fuse", merging(model, names))
        rows += measure([merge], device, rounds=4, warm_up=1)
        forget(model, names)
    return [replace(row, name=matrix(row.name)) for row in rows]


def our_rows(
    module: nn.Module, weights: dict[str, nn.Parameter], device: torch.device, rounds: int
) -> list[Row]:
    """Ours: adapters in place, with another strength, seen for the first time, and from afar."""
    a, b = (models.sparse_adapter(weights, seed) for seed in range(2))
    switcher = AdapterSwitcher(module)
    switcher.add("a", a)
    switcher.add("b", b)

    def renew() -> None:
        switcher.set({"a": 1.0})
        switcher.remove("b")
        switcher.add("b", b)
        switcher.prefetch("b")

    cases = [
        Case(A_TO_B, in_turn(switcher.set, [{"a": 1.0}, {"b": 1.0}])),
        Case(STRENGTH, in_turn(switcher.set, [{"b": 0.5}, {"b": 1.0}])),
        Case(FIRST, lambda: switcher.set({"b": 1.0}), renew),
    ]
    rows = [row for case in cases for row in measure([case], device, rounds=rounds)]
    switcher.clear()
    far = AdapterSwitcher(module, Residency(device_bytes=0, host_bytes=AFAR[device.type]))
    far.add("a", a)
    far.add("b", b)
    waiting = Case(WAITING[device.type], in_turn(far.set, [{"a": 1.0}, {"b": 1.0}]))
    rows += measure([waiting], device, rounds=rounds)
    far.clear()
    return rows


def unet_lora_cases(unet: UNet2DConditionModel, rank: int, names: list[str]) -> list[Case]:
    """The two ways of diffusers: merged into the weights, and beside them."""

    def exchange(name: str) -> None:
        unet.unfuse_lora()
        unet.fuse_lora(adapter_names=[name])

    return [
        Case(f"LoRA r{rank}, unfuse + fuse", in_turn(exchange, names)),
        Case(f"LoRA r{rank}, set_adapters", in_turn(unet.set_adapters, names), unet.unfuse_lora),
    ]


def merging(module: nn.Module, names: list[str]) -> Callable[[], None]:
    """What diffusers' unfuse and fuse do, on the layers of a module that is not diffusers'."""
    layers = [layer for layer in module.modules() if isinstance(layer, LoraLayer)]

    def exchange(name: str) -> None:
        for layer in layers:
            layer.unmerge()
        for layer in layers:
            layer.merge(adapter_names=[name])

    return in_turn(exchange, names)


def forget(module: nn.Module, names: list[str]) -> None:
    """Take LoRAs out of a module that is not diffusers'."""
    for layer in [layer for layer in module.modules() if isinstance(layer, LoraLayer)]:
        layer.unmerge()
        for name in names:
            layer.delete_adapter(name)


def in_turn(act: Callable[[Any], object], values: Sequence[Any]) -> Callable[[], None]:
    """Each call acts on the next of the values."""
    turns = itertools.cycle(values)

    def step() -> None:
        act(next(turns))

    return step


if __name__ == "__main__":
    main()
