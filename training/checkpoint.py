"""Checkpoints of a run: each is complete or not there, whenever the process dies."""

import os
import pickle
import re
import shutil
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from training.errors import RunError

_NAME = re.compile(r"step-(\d{6,})")
_STATE = "state.pt"
_UNREADABLE = (OSError, RuntimeError, ValueError, LookupError, pickle.UnpicklingError)


@dataclass(frozen=True)
class Checkpoints:
    """The `checkpoints` folder of a run, of which the newest `keep` stay."""

    folder: Path
    keep: int

    def steps(self) -> list[int]:
        """Return the steps of all complete checkpoints, rising."""
        if not self.folder.is_dir():
            return []
        complete = (path.parent.name for path in self.folder.glob(f"*/{_STATE}"))
        matches = (_NAME.fullmatch(name) for name in complete)
        return sorted(int(match[1]) for match in matches if match)

    def save(self, step: int, state: Mapping[str, Any]) -> Path:
        """Write the state after `step`, then drop the oldest ones beyond `keep`."""
        path = self._path(step)
        if step in self.steps():
            return path
        self.folder.mkdir(parents=True, exist_ok=True)
        for partial in self.folder.glob(".*.partial"):
            shutil.rmtree(partial)
        partial = self.folder / f".{path.name}.partial"
        partial.mkdir()
        with (partial / _STATE).open("wb") as file:
            torch.save(dict(state), file)
            file.flush()
            os.fsync(file.fileno())
        if path.exists():  # without its state, else it were among the steps
            shutil.rmtree(path)
        partial.rename(path)
        for old in self.steps()[: -self.keep]:
            shutil.rmtree(self._path(old))
        return path

    def load(self) -> dict[str, Any]:
        """Return the newest state, its tensors on the CPU."""
        steps = self.steps()
        if not steps:
            raise RunError(
                f"There is no checkpoint in {self.folder} to resume from. Start without --resume."
            )
        path = self._path(steps[-1]) / _STATE
        try:
            return _read(path)
        except _UNREADABLE as error:
            raise RunError(
                f"The checkpoint {path.parent} cannot be read ({error}). Delete this folder to "
                "resume from the one before."
            ) from error

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step:06d}"


def _read(path: Path) -> dict[str, Any]:
    if not zipfile.is_zipfile(path):
        raise ValueError("it is damaged")
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state
