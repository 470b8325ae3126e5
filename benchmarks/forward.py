"""A forward pass of the UNet, batch 2, with adapters active: ours in the weights, LoRA beside them.

    python -m benchmarks.forward [--device cpu|cuda] [--json FILE]

On CUDA SDXL's UNet in bf16 at 1024 px; on a CPU a small one in fp32. A GPU's host takes longer to
launch this pass than the GPU to run it, and not twice the same; so there the pass is also captured
once, before any adapter is active, and replayed: what the GPU itself needs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from diffusers import UNet2DConditionModel

from benchmarks import models
from benchmarks.measure import Case, Row, measure
from benchmarks.report import Report, finish, machine, parser, ratio
from shira_diffusion import AdapterSwitcher

COUNTS = (1, 2, 5)
BASE, GRAPHED = "base", ", graphed"


def main() -> None:
    """Measure and report."""
    arguments = parser(__doc__).parse_args()
    device = arguments.device
    unet = models.unet_in_use(device)
    with torch.inference_mode():
        rows = [*our_rows(unet, device), *lora_rows(unet, device)]
    finish(Report(machine(device), rows, ratios(rows)), arguments.json)


def ratios(rows: Sequence[Row]) -> dict[str, float]:
    """Each row over the base that ran the same way."""
    bases = {row.name for row in rows if row.name.startswith(BASE)}
    return {
        f"{row.name} / {base}": ratio(rows, row.name, base)
        for row in rows
        if row.name not in bases
        for base in [BASE + GRAPHED if row.name.endswith(GRAPHED) else BASE]
    }


def our_rows(unet: UNet2DConditionModel, device: torch.device) -> list[Row]:
    """The base and ours, a round after another; the switches between them are not timed."""
    switcher = AdapterSwitcher(unet)
    for seed in range(max(COUNTS)):
        switcher.add(str(seed), models.sparse_adapter(models.attention(unet), seed))
    run = partial(unet, **models.forward_inputs(unet))
    rows = measure(our_cases(switcher, run, ""), device, rounds=20)
    if device.type == "cuda":
        switcher.clear()
        rows += measure(our_cases(switcher, captured(run), GRAPHED), device, rounds=20)
    switcher.clear()
    return rows


def our_cases(switcher: AdapterSwitcher, run: Callable[[], object], how: str) -> list[Case]:
    """The same pass without adapters and with so many."""
    cases = [Case(BASE + how, run, switcher.clear)]
    for count in COUNTS:
        mix = {str(seed): 1.0 for seed in range(count)}
        cases.append(Case(f"ours, {count} active{how}", run, partial(switcher.set, mix)))
    return cases


def captured(run: Callable[[], object]) -> Callable[[], object]:
    """`run` as a CUDA graph, which reads the weights where they lie."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


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
