"""A studio on the toy base with small random adapters, for the studio's tests."""

import socket
from pathlib import Path

import torch
from diffusers import StableDiffusionXLPipeline
from PIL import Image

from shira_diffusion import Adapter, AdapterInfo, SparseDelta, pipeline
from studio.engine import Engine
from studio.library import AdapterLibrary
from studio.machine import Machine
from studio.recipe import Recipe
from studio.service import Studio, open_studio

SIDE = 32
HOSTILE = "<img src=x onerror=alert(1)>"


def load_base(base: Path) -> StableDiffusionXLPipeline:
    """The toy base on the CPU."""
    pipe = pipeline.load_base(base, device="cpu")
    # The setting is the whole process's, and hypothesis refuses to draw floats under it.
    torch.set_flush_denormal(False)
    return pipe


def open_toy(base: Path, adapters: Path, outputs: Path) -> Studio:
    """A studio on the CPU."""
    studio = open_studio(str(base), adapters, outputs, Machine(device="cpu"))
    torch.set_flush_denormal(False)
    return studio


def make_adapter(base: Path, folder: Path, *, seed: int, info: AdapterInfo) -> Path:
    """Write an adapter folder whose random change of the UNet shows clearly."""
    unet = load_base(base).unet
    generator = torch.Generator().manual_seed(seed)
    deltas = {}
    for name, weight in unet.named_parameters():
        if name.endswith("to_v.weight"):
            keep = torch.rand(weight.shape, generator=generator) < 0.2
            change = torch.randn(weight.shape, generator=generator) * keep
            deltas[f"unet.{name}"] = SparseDelta.from_dense(change)
    folder.mkdir(parents=True)
    Adapter(deltas, info).save(folder / "adapter.safetensors")
    return folder


def make_library(base: Path, folder: Path) -> Path:
    """`ink` and `robot` with their twins, `lonely` without one, and two folders that are broken."""
    for seed, (name, word) in enumerate([("ink", "ink style"), ("robot", "sks robot")]):
        for ending, method in (("", "shira"), ("-lora", "lora")):
            info = AdapterInfo(
                name=name + ending,
                title=name.title() + (" (LoRA)" if ending else ""),
                method=method,
                trigger_words=(word,),
                training={"data": name, "images": "4"},
            )
            made = make_adapter(base, folder / info.name, seed=10 * seed + len(ending), info=info)
            (made / "card.md").write_text(f"# {name}\n")
            Image.new("RGB", (128, 128), "teal").save(made / "thumbnail.png")
    make_adapter(base, folder / "lonely", seed=99, info=AdapterInfo(name="lonely"))
    (folder / "pickled").mkdir()
    (folder / "pickled" / "adapter.safetensors").write_bytes(b"\x80\x04\x95pickle")
    (folder / HOSTILE).mkdir()
    (folder / ".DS_Store").write_bytes(b"stray")
    return folder


def make_studio(base: Path, folder: Path) -> Studio:
    """A whole studio below `folder`."""
    return open_toy(base, make_library(base, folder / "adapters"), folder / "outputs")


def make_engine(base: Path, library: Path) -> Engine:
    """An engine of its own on the same base and adapters."""
    return Engine(load_base(base), AdapterLibrary(library), base.name)


def recipe(**changes: object) -> Recipe:
    """A quick picture."""
    settings = {
        "prompt": "a castle",
        "steps": 2,
        "guidance": 3.0,
        "seed": 7,
        "width": SIDE,
        "height": SIDE,
    }
    return Recipe(**{**settings, **changes})


def free_port() -> int:
    """A port of this machine that nothing uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
