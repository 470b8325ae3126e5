"""One adapter trained by the project's own trainer, in this process."""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from evaluation import peft_shira
from evaluation.folders import folder_of
from evaluation.trainings import Training
from shira_diffusion.formats import read_info
from training import methods
from training.base import Base
from training.config import Config
from training.errors import ConfigError
from training.events import EventLog
from training.machine import Machine
from training.run import run
from training.settings import load_config

CREATE = {"training": methods.create, "peft-shira": peft_shira.create}
"""The trainers of recipes, and what prepares their method."""
# Of a comparison's adapter nobody needs samples, or checkpoints on the way.
_QUIET = {
    "precision": "fp32",
    "sample_every": 0,
    "sample_steps": 0,
    "checkpoint_every": 0,
    "overwrite": True,
}


def config_of(training: Training, work: Path, folder: Path, device: str) -> Config:
    """Return the trainer's settings of a training; raises `ConfigError` with all their faults."""
    settings = {
        **_QUIET,
        **training.settings,
        "data": str(folder),
        "name": training.name,
        "run": str(_run(training, work)),
        "adapters_dir": str(work / "adapters"),
        "cache_dir": str(work / "cache"),
        "device": device,
        "sample_prompts": [training.subject.word],
        "avoid": [str(other.file(work)) for other in training.avoids],
    }
    config = load_config(training.preset, [f"{key}={_toml(settings[key])}" for key in settings])
    if "cuda_graphs" in training.settings:
        return config
    # PEFT's SHiRA asks the host about its indices in each pass.
    capturable = training.recipe.trainer == "training" and not config.texts_train
    return dataclasses.replace(config, cuda_graphs=capturable and device.startswith("cuda"))


def faults_of(settings: Mapping[str, Any], preset: str) -> list[str]:
    """Say what is wrong with a recipe's settings on top of a preset, before anything is trained."""
    given = [f"{key}={_toml(value)}" for key, value in settings.items()]
    try:
        config = load_config(preset, [*given, "data=.", "name=any"])
    except ConfigError as error:
        headline, *faults = str(error).splitlines()
        return [fault.removeprefix("  - ").removeprefix("--set ") for fault in faults] or [headline]
    if config.new_token:
        return [
            f"new_token = {config.new_token}: a new word's embeddings lie beside its adapter, and "
            "no drawing loads them; remove it"
        ]
    return []


class Bases:
    """Bases that trainings take turns with, each loaded when it is first needed."""

    def __init__(self) -> None:
        self._kept: dict[tuple[str, torch.dtype], Base] = {}

    @contextmanager
    def lent(self, config: Config, device: str) -> Iterator[Base | None]:
        """Lend the settings' base for a run, or none to a run that may not leave it as it was.

        After a run that failed it is loaded anew.
        """
        if config.compile or config.texts_train:
            yield None
            return
        key = config.base, Machine.detect(device, config.precision).dtype
        base = self._kept.pop(key, None) or Base.load(config.base, device, key[1])
        yield base
        self._kept[key] = base


def train(training: Training, work: Path, device: str, bases: Bases) -> dict[str, Any]:
    """Train and export one adapter, unless it is there, and return the line about it.

    Raises `ShiraError` when it cannot be trained, by a loss that is not finite for one.
    """
    file = training.file(work)
    if not file.is_file():
        config = config_of(training, work, folder_of(training.subject, work), device)
        with bases.lent(config, device) as base:
            create = CREATE[training.recipe.trainer]
            outcome = run(config, Console(quiet=True), create=create, base=base)
        if outcome.adapter is None:  # someone pressed Ctrl-C, and means all of it
            raise KeyboardInterrupt
    return {
        "name": training.name,
        "recipe": training.recipe.name,
        "subject": training.subject.name,
        "seed": training.seed,
        "settings": training.recipe.settings(training.subject.kind),
        **_facts(file),
        **_told(EventLog(_run(training, work) / "events.jsonl")),
    }


def _run(training: Training, work: Path) -> Path:
    """Return the run's folder; it stays, for whoever lists the adapter again."""
    return work / "trained" / training.name


def _told(log: EventLog) -> dict[str, Any]:
    """Return the seconds of a run's steps and what it had to warn of, as far as it is known.

    What comes before the steps is left out: the first run of all loads and draws for the others.
    """
    steps, warnings = log.find("step"), [row["message"] for row in log.find("warning")]
    seconds = round(sum(row["seconds"] for row in steps), 2)
    return {
        **({"seconds": seconds} if steps else {}),
        **({"warnings": warnings} if warnings else {}),
    }


def _facts(file: Path) -> dict[str, int]:
    """Return how many values were trained, and the file's size."""
    facts = read_info(file).training.items()
    values = [int(one.replace(",", "")) for key, one in facts if key.endswith("trained values")]
    return {"values": sum(values), "bytes": file.stat().st_size}


def _toml(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
