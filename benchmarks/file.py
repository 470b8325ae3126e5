"""From a file on disk to an adapter that works in the model: ours, LoRA, and PEFT's SHiRA.

    python -m benchmarks.file [--device cpu|cuda] [--json FILE]

On CUDA SDXL's UNet in bf16; on a CPU a small one in fp32. The files are in the page cache.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import peft
import safetensors.torch
import torch
from diffusers import UNet2DConditionModel
from peft.tuners.tuners_utils import BaseTunerLayer

from benchmarks import models
from benchmarks.measure import Case, Row, measure
from benchmarks.report import Report, finish, machine, parser, ratio
from shira_diffusion import Adapter, AdapterSwitcher

OURS, LORA, SHIRA = "ours, native file", "LoRA r64, diffusers", "SHiRA, PEFT"
FUSED = "LoRA r64, diffusers, and fuse"


def main() -> None:
    """Measure and report."""
    arguments = parser(__doc__).parse_args()
    device = arguments.device
    with tempfile.TemporaryDirectory() as folder:
        unet = models.unet_in_use(device)
        rows = our_rows(unet, Path(folder) / "ours.safetensors", device)
        rows += lora_rows(unet, Path(folder), device)
        rows += shira_rows(models.unet_in_use(device), Path(folder) / "shira.safetensors", device)
    ratios = {f"{name} / ours": ratio(rows, name, OURS) for name in (LORA, FUSED, SHIRA)}
    finish(Report(machine(device), rows, ratios), arguments.json)


def our_rows(unet: UNet2DConditionModel, file: Path, device: torch.device) -> list[Row]:
    """Read, check, add, set."""
    models.sparse_adapter(models.attention(unet), 0).save(file)
    switcher = AdapterSwitcher(unet)

    def forget() -> None:
        if switcher.names:
            switcher.remove("a")

    def live() -> None:
        switcher.add("a", Adapter.load(file))
        switcher.set({"a": 1.0})

    rows = measure([Case(OURS, live, forget)], device, rounds=20)
    forget()
    return rows


def lora_rows(unet: UNet2DConditionModel, folder: Path, device: torch.device) -> list[Row]:
    """`load_lora_adapter`, which makes it active; and with `fuse_lora`, which speeds it up."""
    unet.add_adapter(models.lora_config(64), "a")
    models.fill_factors(unet, ["a"])
    unet.save_lora_adapter(folder, "a", weight_name="lora.safetensors")

    def forget() -> None:
        unet.unfuse_lora()
        unet.delete_adapters("a")

    def live() -> None:
        unet.load_lora_adapter(
            folder, weight_name="lora.safetensors", prefix=None, adapter_name="a"
        )

    def fused() -> None:
        live()
        unet.fuse_lora(adapter_names=["a"])

    rows = measure([Case(LORA, live, forget), Case(FUSED, fused, forget)], device, rounds=10)
    forget()
    return rows


def shira_rows(unet: UNet2DConditionModel, file: Path, device: torch.device) -> list[Row]:
    """PEFT's own loading, as diffusers has none; each forward pass then adds a sparse matrix."""
    config = peft.ShiraConfig(
        r=6, target_modules=models.LORA_TARGETS, random_seed=0, init_weights=False
    )
    peft.inject_adapter_in_model(config, unet, adapter_name="first")
    state = peft.get_peft_model_state_dict(unet, adapter_name="first")
    safetensors.torch.save_file(state, file)

    def forget() -> None:
        for layer in [one for one in unet.modules() if isinstance(one, BaseTunerLayer)]:
            layer.delete_adapter("a")

    def live() -> None:
        peft.inject_adapter_in_model(config, unet, adapter_name="a")
        loaded = safetensors.torch.load_file(file)
        peft.set_peft_model_state_dict(unet, loaded, adapter_name="a")

    return measure([Case(SHIRA, live, forget)], device, rounds=10)


if __name__ == "__main__":
    main()
