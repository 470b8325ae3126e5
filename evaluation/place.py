"""Where a plan's results are."""

from dataclasses import dataclass
from pathlib import Path

from evaluation.records import Lines


@dataclass(frozen=True)
class Place:
    """The folder of a plan's results, and the one that plans share."""

    folder: Path
    work: Path

    @property
    def records(self) -> Lines:
        """One line a picture."""
        return Lines(self.folder / "records.jsonl")

    @property
    def adapters(self) -> Lines:
        """One line an adapter."""
        return Lines(self.folder / "adapters.jsonl")

    @property
    def failures(self) -> Lines:
        """One line an adapter or drawing that could not be made."""
        return Lines(self.folder / "failures.jsonl")

    @property
    def pictures(self) -> Path:
        """Pictures for the gallery, by their record's key."""
        return self.folder / "pictures"
