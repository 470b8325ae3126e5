"""The folder of a run, and what may be written where."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.checkpoint import Checkpoints
from training.config import Config
from training.errors import RunError, bullets
from training.events import EventLog
from training.written import differences, to_json

# Settings that tell our config.json from those of other programs.
_SIGNS = frozenset({"data", "name", "base", "method", "steps"})


@dataclass(frozen=True)
class RunFolder:
    """`config.json`, `events.jsonl`, `samples/`, `checkpoints/` and `tensorboard/` of one run."""

    path: Path
    checkpoints: Checkpoints

    @classmethod
    def of(cls, config: Config) -> "RunFolder":
        """Return the folder that the settings name; nothing is written yet."""
        path = Path(config.run)
        return cls(path, Checkpoints(path / "checkpoints", config.keep_checkpoints))

    @property
    def log(self) -> EventLog:
        """The run's event log."""
        return EventLog(self.path / "events.jsonl")

    @property
    def samples(self) -> Path:
        """Where samples are written."""
        return self.path / "samples"

    @property
    def curves(self) -> Path:
        """Where TensorBoard's files are written."""
        return self.path / "tensorboard"

    @property
    def _config(self) -> Path:
        return self.path / "config.json"

    def check(self, config: Config, *, resume: bool) -> None:
        """Raise `RunError` when this run would lose or mix up what is there already."""
        if resume:
            self._check_resume(config)
        else:
            self._check_own()
            if not config.overwrite:
                self._check_fresh()
        adapter = self.adapter(config)
        if adapter.exists() and not self.may_replace(config, resume=resume):
            raise RunError(
                f"There is already an adapter in {adapter}. Choose another name=, or replace it "
                "with --set overwrite=true."
            )

    def adapter(self, config: Config) -> Path:
        """Return where the finished adapter goes."""
        return Path(config.adapters_dir) / config.name

    def may_replace(self, config: Config, *, resume: bool) -> bool:
        """Whether an adapter that is there may go: it is this run's own, or the user says so."""
        place = self.adapter(config).resolve()
        return config.overwrite or (
            resume and any(Path(row["adapter"]).resolve() == place for row in self._finished())
        )

    def begin(self, config: Config, *, resume: bool) -> None:
        """Make the folder ready and write the settings down; `check` comes before."""
        if not resume and config.overwrite:
            for part in (self.checkpoints.folder, self.samples, self.curves):
                shutil.rmtree(part, ignore_errors=True)
            self.log.path.unlink(missing_ok=True)
        self.path.mkdir(parents=True, exist_ok=True)
        partial = self._config.with_suffix(".partial")
        partial.write_text(to_json(config), encoding="utf-8")
        partial.replace(self._config)

    def _finished(self) -> list[dict[str, Any]]:
        return [row for row in self.log.find("finished") if isinstance(row.get("adapter"), str)]

    def _settings(self) -> dict[str, Any]:
        """Return the settings that are written down here, {} when no run has written any."""
        try:
            settings = json.loads(self._config.read_bytes())
        except (FileNotFoundError, NotADirectoryError, ValueError):
            return {}
        return settings if isinstance(settings, dict) and settings.keys() >= _SIGNS else {}

    def _check_own(self) -> None:
        """Raise where the files that a run writes are there but no run has written them."""
        parts = (
            self._config,
            self.log.path,
            self.samples,
            self.checkpoints.folder,
            self.curves,
        )
        strange = [part.name for part in parts if part.exists()]
        if strange and not self._settings():
            raise RunError(
                f"The folder {self.path} has {', '.join(strange)}, but not from a run of this "
                "trainer: nothing in it is replaced. Choose another run folder with run=, or move "
                "them away."
            )

    def _check_resume(self, config: Config) -> None:
        settings = self._settings()
        if not settings:
            raise RunError(f"There is no run in {self.path} to resume. Start without --resume.")
        changes = differences(settings, config)
        if changes:
            headline = (
                f"The run in {self.path} was started with other settings. Resume it with the same "
                "ones, or start a new run with name= or run=:"
            )
            raise RunError(bullets(headline, changes))

    def _check_fresh(self) -> None:
        steps = self.checkpoints.steps()
        if steps:
            raise RunError(
                f"The run folder {self.path} has a checkpoint of step {steps[-1]}. Go on with "
                "--resume, choose another name= or run=, or replace it with --set overwrite=true."
            )
