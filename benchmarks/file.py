"""Adapter files of SDXL's attention: size, saving, reading, and from disk to work in the model.

    python -m benchmarks.file [--device cpu|cuda] [--json FILE]

Files are always of SDXL's own size. "live" is a UNet on the device, where on a CPU it is a small
one in fp32 and its files are small too. All files are in the page cache. Reading ends with all that
is in the file in memory of our own: ours decoded to flat indices, and everything checked that
`Adapter.load` checks; theirs as it lies in the file, rows and columns, with no check but
safetensors'. "flat" is how long theirs takes to the flat int64 indices that a scatter wants.
"""

from __future__ import annotations

import ctypes
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path

import peft
import safetensors.torch
import torch
from diffusers import UNet2DConditionModel
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import save_file
from torch import Tensor

from benchmarks import models
from benchmarks.measure import Case, Row, measure
from benchmarks.report import Report, finish, machine, parser, ratio
from shira_diffusion import Adapter, AdapterSwitcher

OURS, SHIRA = "ours, native file", "SHiRA, PEFT"
FLAT = f"{SHIRA}, flat"
RANKS = (32, 64)
_PEFT_R = 6
_CPU = torch.device("cpu")


def lora(rank: int) -> str:
    """What a LoRA of diffusers is called here."""
    return f"LoRA r{rank}, diffusers"


def main() -> None:
    """Measure and report."""
    arguments = parser(__doc__).parse_args()
    device = arguments.device
    with tempfile.TemporaryDirectory() as folder:
        rows, sizes = stored_rows(Path(folder))
        unet = models.unet_in_use(device)
        rows += our_rows(unet, Path(folder) / "ours.safetensors", device)
        for rank in RANKS:
            rows += lora_rows(unet, Path(folder), rank, device)
        rows += shira_rows(models.unet_in_use(device), Path(folder) / "shira.safetensors", device)
    ratios = {f"MB, {name}": round(size / 1e6, 3) for name, size in sizes.items()}
    ratios |= {f"size, {SHIRA} / ours": round(sizes[SHIRA] / sizes[OURS], 3)}
    for what in ("save", "read", "read again"):
        ratios[f"{what}, {SHIRA} / ours"] = ratio(rows, f"{what}: {SHIRA}", f"{what}: {OURS}")
    ratios[f"read, {FLAT} / ours"] = ratio(rows, f"read: {FLAT}", f"read: {OURS}")
    peers = [*map(lora, RANKS), *(f"{lora(rank)}, and fuse" for rank in RANKS), SHIRA]
    live = {f"live, {name} / ours": ratio(rows, f"live: {name}", f"live: {OURS}") for name in peers}
    finish(Report(machine(device), rows, ratios | live), arguments.json)


def stored_rows(folder: Path) -> tuple[list[Row], dict[str, int]]:
    """Saving and reading files of SDXL's attention, and their sizes in bytes."""
    shapes = models.sdxl_attention()
    file = folder / OURS
    adapter = models.sparse_adapter(
        {f"unet.{name}": torch.empty(shape, device="meta") for name, shape in shapes.items()}, 0
    )
    contents = {SHIRA: peft_tensors(shapes)} | {lora(rank): factors(shapes, rank) for rank in RANKS}
    saving = [Case(f"save: {OURS}", lambda: adapter.save(file))]
    reading: dict[str, Callable[[], object]] = {OURS: lambda: Adapter.load(file)}
    for name, tensors in contents.items():
        saving.append(Case(f"save: {name}", partial(save_file, tensors, folder / name)))
        reading[name] = partial(_read, folder / name)
    reading[FLAT] = lambda: _read_flat(folder / SHIRA, shapes)
    rows = measure(saving, _CPU, rounds=5, warm_up=1)
    for what, prepare in (("read", _give_memory_back), ("read again", _do_nothing)):
        cases = [Case(f"{what}: {name}", run, prepare) for name, run in reading.items()]
        rows += measure(cases, _CPU, rounds=20)
    return rows, {name: (folder / name).stat().st_size for name in (OURS, *contents)}


def _give_memory_back() -> None:
    """Make memory as new as for a first adapter: glibc keeps what the round before has freed."""
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


def _do_nothing() -> None:
    """Leave memory as it is."""


def _read(file: Path) -> list[Tensor]:
    # `load_file` only maps the file; a copy is what brings it into memory.
    return [tensor.clone() for tensor in safetensors.torch.load_file(file).values()]


def _read_flat(file: Path, shapes: Mapping[str, tuple[int, ...]]) -> list[tuple[Tensor, Tensor]]:
    """Indices into each weight's `flatten()`, and values."""
    stored = safetensors.torch.load_file(file)
    read = []
    for name, (_, columns) in shapes.items():
        layer = _peft_layer(name)
        rows, places = stored[f"{layer}.shira_indices"].long()
        read.append((rows * columns + places, stored[f"{layer}.shira_weight"].clone()))
    return read


def _peft_layer(name: str) -> str:
    return f"base_model.model.{name.removesuffix('.weight')}"


def peft_tensors(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """What PEFT's SHiRA of about 1 % writes, entry for entry as large."""
    tensors = {}
    for name, (rows, columns) in shapes.items():
        nnz = _PEFT_R * (rows + columns)
        layer = _peft_layer(name)
        tensors[f"{layer}.shira_weight"] = torch.randn(nnz)
        tensors[f"{layer}.shira_indices"] = torch.randint(0, min(rows, columns), (2, nnz)).int()
    return tensors


def factors(shapes: Mapping[str, tuple[int, ...]], rank: int) -> dict[str, Tensor]:
    """What diffusers writes of a LoRA, in fp16."""
    tensors = {}
    for name, (rows, columns) in shapes.items():
        layer = f"unet.{name.removesuffix('.weight')}"
        tensors[f"{layer}.lora_A.weight"] = torch.randn(rank, columns).half()
        tensors[f"{layer}.lora_B.weight"] = torch.randn(rows, rank).half()
    return tensors


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

    rows = measure([Case(f"live: {OURS}", live, forget)], device, rounds=20)
    forget()
    return rows


def lora_rows(
    unet: UNet2DConditionModel, folder: Path, rank: int, device: torch.device
) -> list[Row]:
    """`load_lora_adapter`, which makes it active; and with `fuse_lora`, which speeds it up."""
    unet.add_adapter(models.lora_config(rank), "a")
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

    name = f"live: {lora(rank)}"
    cases = [Case(name, live, forget), Case(f"{name}, and fuse", fused, forget)]
    rows = measure(cases, device, rounds=5)
    forget()
    return rows


def shira_rows(unet: UNet2DConditionModel, file: Path, device: torch.device) -> list[Row]:
    """PEFT's own loading, as diffusers has none; each forward pass then adds a sparse matrix."""
    config = peft.ShiraConfig(
        r=_PEFT_R, target_modules=models.LORA_TARGETS, random_seed=0, init_weights=False
    )
    peft.inject_adapter_in_model(config, unet, adapter_name="first")
    state = peft.get_peft_model_state_dict(unet, adapter_name="first")
    save_file(state, file)

    def forget() -> None:
        for layer in [one for one in unet.modules() if isinstance(one, BaseTunerLayer)]:
            layer.delete_adapter("a")

    def live() -> None:
        peft.inject_adapter_in_model(config, unet, adapter_name="a")
        loaded = safetensors.torch.load_file(file)
        peft.set_peft_model_state_dict(unet, loaded, adapter_name="a")

    return measure([Case(f"live: {SHIRA}", live, forget)], device, rounds=5)


if __name__ == "__main__":
    main()
