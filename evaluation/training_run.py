"""One adapter trained by the project's own trainer, in this process."""

import json
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from evaluation import peft_shira
from evaluation.folders import folder_of
from evaluation.trainings import Training
from shira_diffusion.errors import ShiraError
from shira_diffusion.formats import read_info
from training import methods
from training.config import Config
from training.errors import ConfigError
from training.run import run
from training.settings import load_config

CREATE = {"training": methods.create, "peft-shira": peft_shira.create}
"""The trainers of recipes, and what prepares their method."""
# Of a comparison's adapter nobody needs samples or checkpoints on the way.
_QUIET = {
    "precision": "fp32",
    "sample_every": 0,
    "sample_steps": 2,
    "checkpoint_every": 10**9,
    "overwrite": True,
}


def config_of(training: Training, work: Path, folder: Path, device: str) -> Config:
    """Return the trainer's settings of a training; raises `ConfigError` with all their faults."""
    settings = {
        **_QUIET,
        **training.settings,
        "data": str(folder),
        "name": training.name,
        "run": str(work / "trained" / training.name),
        "adapters_dir": str(work / "adapters"),
        "cache_dir": str(work / "cache"),
        "device": device,
        "sample_prompts": [training.subject.word],
        "avoid": [str(other.file(work)) for other in training.avoids],
    }
    return load_config(training.preset, [f"{key}={_toml(settings[key])}" for key in settings])


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


def train(training: Training, work: Path, device: str) -> dict[str, Any]:
    """Train and export one adapter, unless it is there, and return the line about it.

    Raises `ShiraError` when it cannot be trained, by a loss that is not finite for one.
    """
    file = training.file(work)
    began = time.perf_counter()
    if not file.is_file():
        config = config_of(training, work, folder_of(training.subject, work), device)
        create = CREATE[training.recipe.trainer]
        outcome = run(config, Console(quiet=True), create=create)
        if outcome.adapter is None:
            raise ShiraError(f"{training.name} was interrupted")
        shutil.rmtree(config.run)
    return {
        "name": training.name,
        "recipe": training.recipe.name,
        "subject": training.subject.name,
        "seed": training.seed,
        "settings": training.recipe.settings(training.subject.kind),
        **_facts(file),
        "seconds": round(time.perf_counter() - began, 1),
    }


def _facts(file: Path) -> dict[str, int]:
    """Return how many values were trained, and the file's size."""
    facts = read_info(file).training.items()
    values = [int(one.replace(",", "")) for key, one in facts if key.endswith("trained values")]
    return {"values": sum(values), "bytes": file.stat().st_size}


def _toml(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
