"""A forward pass of the UNet, batch 2, with adapters active: ours in the weights, LoRA beside them.

    python -m benchmarks.forward [--device cpu|cuda] [--json FILE]

On CUDA SDXL's UNet in bf16 at 1024 px; on a CPU a small one in fp32.
"""

from __future__ import annotations

from functools import partial

import torch
from diffusers import UNet2DConditionModel

from benchmarks import models
from benchmarks.measure import Case, Row, measure
from benchmarks.report import Report, finish, machine, parser, ratio
from shira_diffusion import AdapterSwitcher

COUNTS = (1, 2, 5)


def main() -> None:
    """Measure and report."""
    arguments = parser(__doc__).parse_args()
    device = arguments.device
    unet = models.unet_in_use(device)
    with torch.inference_mode():
        rows = [*our_rows(unet, device), *lora_rows(unet, device)]
    names = [row.name for row in rows if row.name != "base"]
    ratios = {f"{name} / base": ratio(rows, name, "base") for name in names}
    finish(Report(machine(device), rows, ratios), arguments.json)


def our_rows(unet: UNet2DConditionModel, device: torch.device) -> list[Row]:
    """The base and ours, a round after another; the switches between them are not timed."""
    switcher = AdapterSwitcher(unet)
    for seed in range(max(COUNTS)):
        switcher.add(str(seed), models.sparse_adapter(models.attention(unet), seed))
    run = partial(unet, **models.forward_inputs(unet))
    cases = [Case("base", run, switcher.clear)]
    for count in COUNTS:
        mix = {str(seed): 1.0 for seed in range(count)}
        cases.append(Case(f"ours, {count} active", run, partial(switcher.set, mix)))
    rows = measure(cases, device, rounds=20)
    switcher.clear()
    return rows


def lora_rows(unet: UNet2DConditionModel, device: torch.device) -> list[Row]:
    """LoRAs of rank 16 that are not merged, as `set_adapters` leaves them."""
    names = ["one", "two"]
    for name in names:
        unet.add_adapter(models.lora_config(16), name)
    models.fill_factors(unet, names)
    run = partial(unet, **models.forward_inputs(unet))
    cases = [
        Case(f"LoRA r16, {count} active", run, partial(unet.set_adapters, names[:count]))
        for count in (1, 2)
    ]
    return measure(cases, device, rounds=10)


if __name__ == "__main__":
    main()
