"""The adapters on disk: one folder each, read by header only, broken ones with the reason."""

import hashlib
import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from safetensors import SafetensorError, safe_open

from shira_diffusion import Adapter, AdapterInfo
from shira_diffusion.errors import ShiraError, UnknownAdapterError, nearest
from shira_diffusion.formats import metadata
from studio.errors import BrokenAdapterError

ADAPTER_FILE = "adapter.safetensors"
CARD_FILE = "card.md"
THUMBNAIL_FILE = "thumbnail.png"
TWIN_ENDING = "-lora"
LORA = "lora"
MAX_CARD = 64 * 1024


@dataclass(frozen=True)
class Stamp:
    """What tells one version of a file from another without reading it."""

    modified_ns: int
    size: int


MISSING = Stamp(0, 0)


@dataclass(frozen=True)
class Entry:
    """One adapter folder; `problem` says why it cannot be used and is empty when it can."""

    name: str
    folder: Path
    info: AdapterInfo
    stamp: Stamp = MISSING
    problem: str = ""

    @property
    def title(self) -> str:
        """What people call it."""
        return self.info.title or self.name

    @property
    def is_twin(self) -> bool:
        """Whether it is the LoRA twin of a SHiRA adapter, by its name."""
        return self.name.endswith(TWIN_ENDING)

    @property
    def thumbnail(self) -> Path:
        """Where its picture would be; there need not be one."""
        return self.folder / THUMBNAIL_FILE

    def sha256(self) -> str:
        """The hash of its file, in hexadecimal."""
        with (self.folder / ADAPTER_FILE).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def card(self) -> str:
        """The text of its card, or nothing."""
        try:
            with (self.folder / CARD_FILE).open(encoding="utf-8", errors="replace") as file:
                return file.read(MAX_CARD)
        except OSError:
            return ""


class AdapterLibrary:
    """All adapters below one folder; `rescan` looks again, everything else answers from memory.

    `fingerprints` are the base's, by component: adapters that were made for another are listed
    with that as their problem.
    """

    def __init__(self, folder: Path, fingerprints: Mapping[str, str] | None = None) -> None:
        self.folder = folder.absolute()
        self._fingerprints = dict(fingerprints or {})
        self._lock = threading.Lock()
        self._entries: dict[str, Entry] = {}
        # Faults that only reading the whole file shows; they hold until the file changes.
        self._faults: dict[tuple[str, Stamp], str] = {}
        self.rescan()

    def rescan(self) -> tuple[Entry, ...]:
        """Read the folder again and return `entries`."""
        try:
            folders = sorted(path for path in self.folder.iterdir() if _is_adapter_folder(path))
        except OSError:
            folders = []
        found = {folder.name: self._judged(_read_entry(folder)) for folder in folders}
        with self._lock:
            self._entries = found
        return self.entries

    def _judged(self, entry: Entry) -> Entry:
        fault = self._faults.get((entry.name, entry.stamp))
        if fault:
            return replace(entry, problem=fault)
        for component, mark in entry.info.base_fingerprint.items():
            if self._fingerprints.get(component, mark) != mark:
                base = entry.info.base_model or "another base model"
                return replace(entry, problem=f"it was made for {base}, not for the one in use")
        return entry

    @property
    def entries(self) -> tuple[Entry, ...]:
        """Every adapter folder in order of name, broken ones included."""
        with self._lock:
            return tuple(self._entries.values())

    @property
    def usable(self) -> tuple[Entry, ...]:
        """The adapters that can be used."""
        return tuple(entry for entry in self.entries if not entry.problem)

    def find(self, name: str) -> Entry:
        """The usable adapter of this name; `UnknownAdapterError` or `BrokenAdapterError` if not.

        Names are only ever looked up among the folders that were found, so that no name from a
        page becomes a path. A file that changed since is read again.
        """
        with self._lock:
            entry = self._entries.get(name)
        if entry is None:
            names = [known.name for known in self.usable]
            raise UnknownAdapterError(
                f"There is no adapter {name!r} in the library; {nearest(name, names)}."
            )
        if _stamp(entry.folder) != entry.stamp:
            entry = self._judged(_read_entry(entry.folder))
            with self._lock:
                self._entries[name] = entry
        if entry.problem:
            raise BrokenAdapterError(f"The adapter {name!r} cannot be used: {entry.problem}")
        return entry

    def load(self, entry: Entry) -> Adapter:
        """Read the whole file; a fault is remembered and shown in the list from then on."""
        try:
            return Adapter.load(entry.folder / ADAPTER_FILE)
        except (ShiraError, OSError) as error:
            with self._lock:
                self._faults[entry.name, entry.stamp] = str(error)
                self._entries[entry.name] = replace(entry, problem=str(error))
            raise BrokenAdapterError(
                f"The adapter {entry.name!r} cannot be used: {error}"
            ) from error


def _is_adapter_folder(path: Path) -> bool:
    # Stray files and hidden folders (.DS_Store, .ipynb_checkpoints) are nobody's adapters.
    return path.is_dir() and not path.name.startswith((".", "_"))


def _stamp(folder: Path) -> Stamp:
    try:
        stat = (folder / ADAPTER_FILE).stat()
    except OSError:
        return MISSING
    return Stamp(stat.st_mtime_ns, stat.st_size)


def _read_entry(folder: Path) -> Entry:
    path = folder / ADAPTER_FILE
    unread = AdapterInfo(name=folder.name.encode(errors="replace").decode(), method="")
    stamp = _stamp(folder)
    if stamp == MISSING:
        problem = f"there is no {ADAPTER_FILE} in its folder"
        return Entry(folder.name, folder, unread, problem=problem)
    try:
        return Entry(folder.name, folder, _read_info(path), stamp)
    except (SafetensorError, OSError) as error:
        problem = f"{ADAPTER_FILE} is not a whole safetensors file ({error})"
    except ShiraError as error:
        problem = str(error)
    return Entry(folder.name, folder, unread, stamp, problem)


def _read_info(path: Path) -> AdapterInfo:
    with safe_open(path, framework="pt") as file:
        known = metadata.decode(file.metadata() or {})
        names = list(file.keys())
    if known is not None:
        return known
    return AdapterInfo(name=path.parent.name, method=LORA if _looks_like_lora(names) else "")


def _looks_like_lora(names: list[str]) -> bool:
    return any("lora" in name.lower() for name in names)
