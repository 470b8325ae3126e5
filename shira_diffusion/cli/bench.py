"""`shira bench`: how fast adapters switch on this machine, beside merging a LoRA."""

from __future__ import annotations

import argparse
import dataclasses
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import torch
from torch import Tensor, nn

from shira_diffusion import masks
from shira_diffusion.adapter import Adapter, AdapterInfo
from shira_diffusion.cli import layout
from shira_diffusion.cli.command import Command, Outcome
from shira_diffusion.cli.progress import Told, progress
from shira_diffusion.delta import SparseDelta
from shira_diffusion.errors import SettingError
from shira_diffusion.switch import AdapterSwitcher

# The attention weights of SDXL's UNet, and how many there are of each shape.
_SDXL = {(640, 640): 60, (640, 2048): 20, (1280, 1280): 360, (1280, 2048): 120}


@dataclass(frozen=True)
class Row:
    """Milliseconds of one way: the median of some rounds and the quartiles around it."""

    name: str
    median_ms: float
    low_ms: float
    high_ms: float


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "--share",
        type=float,
        default=0.1,
        metavar="SHARE",
        help="of SDXL's 560 attention matrices (default 0.1, 380 MB in fp32; 1 takes 3.8 GB)",
    )
    parser.add_argument(
        "--density", type=float, default=0.01, metavar="SHARE", help="of SHiRA (default 0.01)"
    )
    parser.add_argument("--rank", type=int, default=64, metavar="N", help="of LoRA (default 64)")
    parser.add_argument("--rounds", type=int, default=10, metavar="N", help="default 10")
    parser.add_argument("--device", choices=("cpu", "cuda", "mps"), help="default: the best here")


def run(options: argparse.Namespace) -> Outcome:
    """Measure, and say on what."""
    if not 0 < options.share <= 1 or options.rounds < 5 or options.rank < 1:
        raise SettingError("--share must be in (0, 1], --rounds at least 5 and --rank at least 1")
    device = _device(options.device)
    model = _model(options.share, device)
    base = [weight.detach().clone() for weight in model.parameters()]
    with progress("measuring") as told:
        ours = _ours(model, options, told)
        our_strays = _strays(model, base)
        theirs = _theirs(model, options, told)
        their_strays = _strays(model, base)
    machine = _machine(device, base[0].dtype)
    rows = [*ours, theirs]
    facts: dict[str, Any] = {
        "machine": machine,
        "matrices": len(base),
        "weights": sum(one.numel() for one in base),
        "rows": [dataclasses.asdict(row) for row in rows],
        "lora_over_ours": round(theirs.median_ms / ours[0].median_ms, 2),
        "changed_afterwards": {"shira": our_strays, "lora": their_strays},
    }
    return Outcome(_text(facts, rows), facts)


def _text(facts: Mapping[str, Any], rows: Sequence[Row]) -> str:
    machine = ", ".join(f"{key} {value}" for key, value in facts["machine"].items())
    figures = [
        (row.name, f"{row.median_ms:.2f}", f"{row.low_ms:.2f} - {row.high_ms:.2f}") for row in rows
    ]
    strays = facts["changed_afterwards"]
    return f"""{facts["matrices"]} matrices of the shapes of SDXL's attention, \
{facts["weights"]:,} random weights
{machine}

{layout.table(("", "median ms", "quartiles"), figures)}

LoRA takes {facts["lora_over_ours"]} times as long; that is its arithmetic without what PEFT does \
around it.
Taken off again, SHiRA leaves {layout.percent(strays["shira"])} of the weights changed, LoRA \
{layout.percent(strays["lora"])}.
Other programs that are running count too. PEFT itself: python -m benchmarks.switch"""


def _device(name: str | None) -> torch.device:
    here = ["cpu"]
    here += ["cuda"] * torch.cuda.is_available() + ["mps"] * torch.backends.mps.is_available()
    if name is not None and name not in here:
        raise SettingError(f"there is no device {name!r} here; there are: {', '.join(here)}")
    return torch.device(name or here[-1])


def _model(share: float, device: torch.device) -> nn.Module:
    """Random matrices, at least one of each shape, in the precision that the device works in."""
    dtype = torch.float32 if device.type == "cpu" else torch.float16
    generator = torch.Generator(device).manual_seed(0)
    model = nn.ParameterDict()
    for (rows, columns), count in _SDXL.items():
        for number in range(max(1, round(share * count))):
            drawn = torch.randn(rows, columns, generator=generator, device=device)
            model[f"{rows}x{columns}_{number}"] = nn.Parameter((0.03 * drawn).to(dtype))
    return model


def _ours(model: nn.Module, options: argparse.Namespace, told: Told) -> list[Row]:
    switcher = AdapterSwitcher(model)
    for seed, name in enumerate("ab"):
        switcher.add(name, _adapter(model, options.density, seed))
    ways = {
        f"SHiRA {layout.percent(options.density)}, A -> B": [{"a": 1.0}, {"b": 1.0}],
        "SHiRA, another strength": [{"a": 0.5}, {"a": 1.0}],
        "SHiRA, both on and off": [{"a": 1.0, "b": 0.7}, {}],
    }
    rows = []
    for name, mixes in ways.items():
        rows.append(_measure(name, _switching(switcher, mixes), model, options))
        told(len(rows), len(ways) + 1)
    switcher.clear()
    return rows


def _switching(
    switcher: AdapterSwitcher, mixes: Sequence[Mapping[str, float]]
) -> Callable[[], None]:
    turns = cycle(mixes)
    return lambda: switcher.set(next(turns))


def _adapter(model: nn.Module, density: float, seed: int) -> Adapter:
    deltas = {}
    for number, (name, weight) in enumerate(model.named_parameters()):
        generator = torch.Generator().manual_seed(1000 * seed + number)
        taken = masks.count(weight.numel(), density)
        indices = masks.rand(tuple(weight.shape), taken, generator)
        values = 0.01 * torch.randn(indices.numel(), generator=generator)
        deltas[name] = SparseDelta(indices, values.half(), tuple(weight.shape))
    return Adapter(deltas, AdapterInfo(name=f"random {seed}"))


def _theirs(model: nn.Module, options: argparse.Namespace, told: Told) -> Row:
    """Merging: what was added is computed again and subtracted, then the other one is added."""
    weights = [weight.detach() for weight in model.parameters()]
    loras = [[_factors(weight, options.rank, seed) for weight in weights] for seed in range(2)]
    turns = cycle(loras)
    on: list[list[tuple[Tensor, Tensor]]] = []

    def exchange() -> None:
        for lora in on:
            _add(weights, lora, -1.0)
        on[:] = [next(turns)]
        _add(weights, on[0], 1.0)

    row = _measure(f"LoRA r{options.rank}, A -> B, merged", exchange, model, options)
    for lora in on:
        _add(weights, lora, -1.0)
    told(1, 1)
    return row


def _factors(weight: Tensor, rank: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator(weight.device).manual_seed(seed)
    shapes = (weight.shape[0], rank), (rank, weight.shape[1])
    up, down = (
        0.03 * torch.randn(shape, generator=generator, device=weight.device) for shape in shapes
    )
    return up.to(weight.dtype), down.to(weight.dtype)


def _add(weights: Sequence[Tensor], lora: Sequence[tuple[Tensor, Tensor]], sign: float) -> None:
    for weight, (up, down) in zip(weights, lora, strict=True):
        weight.add_(up @ down, alpha=sign)


def _measure(
    name: str, act: Callable[[], object], model: nn.Module, options: argparse.Namespace
) -> Row:
    """Each round is timed alone; two before them are not counted."""
    device = next(model.parameters()).device
    taken = []
    for number in range(options.rounds + 2):
        _wait(device)
        began = time.perf_counter()
        act()
        _wait(device)
        if number >= 2:
            taken.append(1000 * (time.perf_counter() - began))
    low, middle, high = (round(one, 3) for one in statistics.quantiles(taken, n=4))
    return Row(name, middle, low, high)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def _strays(model: nn.Module, base: Sequence[Tensor]) -> float:
    """The share of weights that are not what they were."""
    pairs = list(zip(model.parameters(), base, strict=True))
    differing = sum(int((now.detach() != before).sum()) for now, before in pairs)
    return differing / sum(before.numel() for before in base)


def _machine(device: torch.device, dtype: torch.dtype) -> dict[str, str]:
    named = torch.cuda.get_device_name() if device.type == "cuda" else platform.machine()
    return {
        "device": f"{device.type} ({named})",
        "threads": str(torch.get_num_threads()),
        "torch": torch.__version__,
        "dtype": str(dtype).removeprefix("torch."),
    }


COMMAND = Command(
    name="bench",
    summary="measure how fast adapters switch here",
    description="Switch between random adapters on random matrices of SDXL's attention, and merge\n"
    "LoRAs into the same ones. No model is needed.",
    examples="""  shira bench
  shira bench --share 1 --rank 16
  shira bench --device cuda --share 1 --json
""",
    arguments=arguments,
    run=run,
)
