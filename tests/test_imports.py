"""Imports point one way: through the library's modules, and from the studio and trainer to it."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LIBRARY = ROOT / "shira_diffusion"
# A module of the library may import those above it.
ORDER = [
    "errors",
    "progress",
    "delta",
    "lowrank",
    "energy",
    "masks",
    "budgets",
    "scores",
    "whole",
    "places",
    "triton_scatter",
    "scatter",
    "components",
    "fingerprint",
    "adapter",
    "metrics",
    "summary",
    "modelspec",
    "cards",
    "union",
    "mixture",
    "svd",
    "fuse.parts",
    "fuse.collisions",
    "fuse.thin",
    "fuse.ties",
    "fuse",
    "formats.metadata",
    "formats.memory",
    "formats.checksum",
    "formats.container",
    "formats.embeddings",
    "formats.gaps",
    "formats.layout",
    "formats.planes",
    "formats.groups",
    "formats.native_v1",
    "formats.native",
    "formats.sgm",
    "formats.kohya",
    "formats.names",
    "formats.sides",
    "formats.peft",
    "formats.diff",
    "formats.lora",
    "formats.checkpoint",
    "formats",
    "words",
    "fitting",
    "targets",
    "sparsify",
    "bake",
    "packed",
    "whole_base",
    "plan",
    "sites",
    "transaction",
    "residency",
    "switch",
    "schedule",
    "composite",
    "inbox",
    "taps",
    "tune",
    "captured",
    "pipeline",
    "relabel",
    "verify",
    "hub",
    "cli.command",
    "cli.layout",
    "cli.progress",
    "cli.sources",
    "cli.inspect",
    "cli.verify",
    "cli.writers",
    "cli.convert",
    "cli.fuse",
    "cli.extract",
    "cli.bake",
    "cli.tag",
    "cli.push",
    "cli.bench",
    "cli",
    "__main__",
]
OUTSIDE = {"numpy", "safetensors", "torch"}
# `Adapter.load` and `save` reach for the formats, which build adapters, when they are called.
LATE = {("adapter", "formats"), ("adapter", "formats.native")}
# Triton is imported once there are weights on CUDA.
LATE |= {("places", "triton_scatter")}
# Which of our packages each may import, next to itself.
ARROWS = {
    "shira_diffusion": set(),
    "emoji_xl": {"shira_diffusion"},
    "training": {"shira_diffusion"},
    "evaluation": {"shira_diffusion", "training", "emoji_xl"},
    "studio": {"shira_diffusion", "emoji_xl"},
    "benchmarks": {"shira_diffusion", "training"},
    "app.py": {"shira_diffusion", "studio"},
}


def modules(package: Path) -> list[Path]:
    return [package] if package.suffix == ".py" else sorted(package.rglob("*.py"))


def library_name(file: Path) -> str:
    parts = file.relative_to(LIBRARY).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def imported(file: Path) -> Iterator[str]:
    """The full names that a file imports, wherever in it; `from a import b` counts as a.b."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def library_imports(file: Path) -> set[str]:
    """The library's own modules that a file imports."""
    found = set()
    for name in imported(file):
        if name.startswith("shira_diffusion."):
            inner = name.removeprefix("shira_diffusion.")
            # Of `errors.FormatError` the module is `errors`, of `formats.native` it is all of it.
            while inner not in ORDER:
                assert "." in inner, f"{file} imports {name}, which ORDER does not know"
                inner = inner.rpartition(".")[0]
            found.add(inner)
    return found


def test_the_order_names_every_module() -> None:
    assert sorted(ORDER) == sorted(library_name(file) for file in modules(LIBRARY))[1:]


@pytest.mark.parametrize("file", modules(LIBRARY), ids=library_name)
def test_the_library_points_one_way(file: Path) -> None:
    name = library_name(file)
    if name == "":
        return
    above = set(ORDER[: ORDER.index(name)])
    late = {target for source, target in LATE if source == name}
    assert library_imports(file) <= above | late


@pytest.mark.parametrize("file", modules(LIBRARY), ids=library_name)
def test_the_library_knows_torch_and_safetensors_alone(file: Path) -> None:
    allowed = OUTSIDE | {"shira_diffusion"} | set(sys.stdlib_module_names)
    allowed |= {
        "pipeline": {"diffusers", "huggingface_hub", "transformers"},
        "triton_scatter": {"triton"},
        # Imported when they are needed; without them the command line says what to install.
        "hub": {"huggingface_hub"},
        "cli.progress": {"rich"},
    }.get(library_name(file), set())
    assert {name.partition(".")[0] for name in imported(file)} <= allowed


@pytest.mark.parametrize("package", ARROWS)
def test_packages_point_one_way(package: str) -> None:
    ours = set(ARROWS) | {"app", "tests"}
    forbidden = ours - ARROWS[package] - {package}
    for file in modules(ROOT / package):
        tops = {name.partition(".")[0] for name in imported(file)}
        assert not tops & forbidden, f"{file} imports {sorted(tops & forbidden)}"


def test_only_the_page_knows_gradio() -> None:
    files = [file for package in ARROWS for file in modules(ROOT / package)]
    found = {
        file.relative_to(ROOT).as_posix()
        for file in files
        if "gradio" in {name.partition(".")[0] for name in imported(file)}
    }
    assert "studio/page.py" in found
    outside = found - {"studio/page.py", "studio/theme.py"}
    assert all(name.startswith("studio/tabs/") for name in outside), outside


def test_only_its_judge_ties_the_studio_to_the_emoji() -> None:
    found = {
        file.relative_to(ROOT).as_posix()
        for file in modules(ROOT / "studio")
        if "emoji_xl" in {name.partition(".")[0] for name in imported(file)}
    }
    assert found == {"studio/judges/emoji.py"}


@pytest.mark.parametrize("file", modules(LIBRARY), ids=library_name)
def test_the_library_reads_no_pickle(file: Path) -> None:
    text = file.read_text(encoding="utf-8").replace("safetensors.torch.load(", "")
    assert "torch.load(" not in text
    assert "pickle" not in {name.partition(".")[0] for name in imported(file)}
