"""What was found, one line a picture, appended and never rewritten."""

import gzip
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluation.errors import EvaluationError
from training.json_lines import closing, objects

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Lines:
    """A file of JSON objects that one process appends to; `.gz` files are only read."""

    path: Path

    def append(self, records: Iterable[Record]) -> None:
        """Add lines; what a dying process left torn is closed off first."""
        text = "".join(f"{json.dumps(record)}\n" for record in records)
        if not text:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        start = closing(self.path)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(start + text)
            file.flush()
            os.fsync(file.fileno())

    def read(self) -> Iterator[dict[str, Any]]:
        """Yield every whole line's object; a torn one is passed over."""
        if not self.path.is_file():
            return
        packed = self.path.suffix == ".gz"
        content = gzip.decompress(self.path.read_bytes()) if packed else self.path.read_bytes()
        yield from objects(content)


def read_records(paths: Iterable[Path]) -> list[dict[str, Any]]:
    """Join record files, each picture once; raises `EvaluationError` when there is none.

    Files of several machines or runs of one plan can be given together.
    """
    found: dict[str, dict[str, Any]] = {}
    for path in paths:
        if not path.is_file():
            raise EvaluationError(f"There is no records file {path}; run the plan first.")
        for record in Lines(path).read():
            found.setdefault(str(record["key"]), record)
    return list(found.values())


def found_in(folders: Iterable[Path]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the records of pictures and the lines about adapters of several runs."""
    folders = list(folders)
    adapters = [line for folder in folders for line in Lines(_file(folder, "adapters")).read()]
    return read_records([_file(folder, "records") for folder in folders]), adapters


def _file(folder: Path, name: str) -> Path:
    """Return a run's file, gzipped or not."""
    packed = folder / f"{name}.jsonl.gz"
    return packed if packed.is_file() else folder / f"{name}.jsonl"


def pack(path: Path, records: Iterable[Record]) -> None:
    """Write records as a gzip that is the same for the same records."""
    text = "".join(f"{json.dumps(record)}\n" for record in records)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text.encode(), mtime=0))
