"""What README's commands import is there after its `pip install -r requirements.txt`."""

import ast
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from test_imports import ARROWS, ROOT, modules

COMMANDS = ("app.py", "shira_diffusion", "studio", "training", "evaluation", "emoji_xl")
OPTIONAL = {"triton"}
"""Comes with torch where there is CUDA."""


def at_the_top(node: ast.AST) -> Iterator[str]:
    """The packages that are imported as soon as a file is; what functions import may be absent."""
    for inner in ast.iter_child_nodes(node):
        if isinstance(inner, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in inner.names)
        elif isinstance(inner, ast.ImportFrom):
            yield str(inner.module).partition(".")[0]
        elif not isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from at_the_top(inner)


def installed_by(file: Path) -> set[str]:
    """The distributions that a requirements file names, and what they bring."""
    lines = file.read_text(encoding="utf-8").splitlines()
    waiting, found = [Requirement(line) for line in lines if line], set()
    while waiting:
        name = canonicalize_name(waiting.pop().name)
        if name in found:
            continue
        found.add(name)
        try:
            needed = [Requirement(line) for line in requires(name) or ()]
        except PackageNotFoundError:
            continue
        waiting += [one for one in needed if not one.marker or one.marker.evaluate({"extra": ""})]
    return found


def test_readmes_install_brings_what_its_commands_import() -> None:
    assert set(COMMANDS) <= set(ARROWS)
    there, distributions = installed_by(ROOT / "requirements.txt"), packages_distributions()
    for file in (file for package in COMMANDS for file in modules(ROOT / package)):
        for name in set(at_the_top(ast.parse(file.read_text(encoding="utf-8")))) - OPTIONAL:
            makers = {canonicalize_name(one) for one in distributions.get(name, ())}
            assert not makers or makers & there, f"{file} imports {name}: not in requirements.txt"
