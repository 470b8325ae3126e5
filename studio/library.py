"""The adapters on disk: one folder each, read by header only, broken ones with the reason."""

import hashlib
import re
import threading
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from shira_diffusion import Adapter, AdapterInfo, formats
from shira_diffusion.errors import ShiraError, UnknownAdapterError, nearest
from studio.errors import BrokenAdapterError
from studio.twins import TWIN_ENDING, objection

ADAPTER_FILE = "adapter.safetensors"
CARD_FILE = "card.md"
THUMBNAIL_FILE = "thumbnail.png"
_METHODS = {
    "shira": "SHiRA",
    "lora": "LoRA",
    "dora": "DoRA",
    "symlora": "SymLoRA",
    "shira-dora": "SHiRA-DoRA",
}
KINDS = ("style", "concept")
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
    is_twin: bool = False
    """Whether it is the LoRA twin of a SHiRA adapter of the library, by `twins.objection`."""
    is_namesake: bool = False
    """Whether another adapter of the library has the same title."""

    @property
    def title(self) -> str:
        """What people call it."""
        return self.info.title or self.name

    @property
    def label(self) -> str:
        """The title, with the folder's name where another adapter has the same one."""
        return f"{self.title} · {self.name}" if self.is_namesake else self.title

    @property
    def kind(self) -> str:
        """Style or concept, by its tags, else by its trigger words; empty where neither tells."""
        tags = [tag.lower() for tag in self.info.tags]
        tagged = next((kind for kind in KINDS if kind in tags), "")
        if tagged or not self.info.trigger_words:
            return tagged
        is_style = any(re.search(r"\bstyle\b", word) for word in self.info.trigger_words)
        return KINDS[0] if is_style else KINDS[1]

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
        self._lent: dict[str, Entry] = {}
        self._reserved: list[Callable[[], Collection[str]]] = []
        # Faults that only reading the whole file shows; they hold until the file changes.
        self._faults: dict[tuple[str, Stamp], str] = {}
        self.rescan()

    def rescan(self) -> tuple[Entry, ...]:
        """Read the folder again and return `entries`."""
        try:
            folders = sorted(path for path in self.folder.iterdir() if _is_adapter_folder(path))
        except OSError:
            folders = []
        found = [self._judged(_read_entry(folder)) for folder in folders]
        known = {entry.name: entry for entry in found}
        titles = Counter(entry.title for entry in found)
        found = [
            replace(entry, is_twin=_is_twin(entry, known), is_namesake=titles[entry.title] > 1)
            for entry in found
        ]
        with self._lock:
            self._entries = {entry.name: entry for entry in found}
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

    def twin_of(self, name: str) -> Entry | None:
        """The usable LoRA twin of the adapter of this name, if there is one."""
        wanted = name + TWIN_ENDING
        return next((one for one in self.usable if one.is_twin and one.name == wanted), None)

    def reserve(self, names: Callable[[], Collection[str]]) -> None:
        """Let the names that `names` gives, of folders yet to be made, count as taken too."""
        self._reserved.append(names)

    def taken(self) -> set[str]:
        """The names that a new adapter cannot have, as the folder is now."""
        reserved = {name for names in self._reserved for name in names()}
        return reserved | {entry.name for entry in self.rescan()}

    def find(self, name: str) -> Entry:
        """The usable adapter of this name; `UnknownAdapterError` or `BrokenAdapterError` if not.

        Names are only ever looked up among the folders that were found, so that no name from a
        page becomes a path. A file that changed since is read again.
        """
        entry = self.listed(name)
        if _stamp(entry.folder) != entry.stamp:
            read = self._judged(_read_entry(entry.folder))
            entry = replace(read, name=name, is_twin=entry.is_twin, is_namesake=entry.is_namesake)
            self._renew(entry)
        if entry.problem:
            raise BrokenAdapterError(f"The adapter {name!r} cannot be used: {entry.problem}")
        return entry

    def knows(self, name: str) -> bool:
        """Whether `listed` finds this name."""
        with self._lock:
            return name in self._entries or name in self._lent

    def listed(self, name: str) -> Entry:
        """The adapter of this name as it was last seen, broken or not; `UnknownAdapterError`."""
        with self._lock:
            entry = self._entries.get(name) or self._lent.get(name)
        if entry is None:
            names = [known.name for known in self.usable]
            raise UnknownAdapterError(
                f"There is no adapter {name!r} in the library; {nearest(name, names)}."
            )
        return entry

    def lend(self, name: str, folder: Path) -> Entry:
        """Make an adapter in another folder known to `find`, listed nowhere, until `unlend`.

        `name` must be one that no adapter folder can have.
        """
        assert "/" in name
        entry = replace(self._judged(_read_entry(folder)), name=name)
        with self._lock:
            self._lent[name] = entry
        return entry

    def unlend(self, name: str) -> None:
        """Undo `lend`; nothing happens for a name that is not lent."""
        with self._lock:
            self._lent.pop(name, None)

    def load(self, entry: Entry) -> Adapter:
        """Read the whole file; a fault is remembered and shown in the list from then on."""
        try:
            return Adapter.load(entry.folder / ADAPTER_FILE)
        except (ShiraError, OSError) as error:
            problem = _told(error, entry.folder)
            with self._lock:
                self._faults[entry.name, entry.stamp] = problem
            self._renew(replace(entry, problem=problem))
            raise BrokenAdapterError(
                f"The adapter {entry.name!r} cannot be used: {problem}"
            ) from error

    def _renew(self, entry: Entry) -> None:
        """Keep what was found out about an adapter, unless it left meanwhile."""
        with self._lock:
            for shelf in (self._entries, self._lent):
                if entry.name in shelf:
                    shelf[entry.name] = entry


def method_name(method: str) -> str:
    """What people call a method; as it is written where it is none of ours."""
    return _METHODS.get(method, method)


def _is_adapter_folder(path: Path) -> bool:
    # Stray files and hidden folders (.DS_Store, .ipynb_checkpoints) are nobody's adapters.
    return path.is_dir() and not path.name.startswith((".", "_"))


def _is_twin(entry: Entry, known: Mapping[str, Entry]) -> bool:
    name = entry.name.removesuffix(TWIN_ENDING)
    sparse = known.get(name) if name != entry.name else None
    return sparse is not None and not objection(sparse.info, entry.info)


def _stamp(folder: Path) -> Stamp:
    try:
        stat = (folder / ADAPTER_FILE).stat()
    except OSError:
        return MISSING
    return Stamp(stat.st_mtime_ns, stat.st_size)


def _read_entry(folder: Path) -> Entry:
    name = folder.name.encode(errors="backslashreplace").decode()
    unread = AdapterInfo(name=name, method="")
    if name != folder.name:
        return Entry(name, folder, unread, problem="its name is not UTF-8: rename the folder")
    stamp = _stamp(folder)
    if stamp == MISSING:
        return Entry(name, folder, unread, problem=f"there is no {ADAPTER_FILE} in its folder")
    try:
        return Entry(name, folder, formats.read_info(folder / ADAPTER_FILE), stamp)
    except ShiraError as error:
        return Entry(name, folder, unread, stamp, _told(error, folder))


def _told(error: Exception, folder: Path) -> str:
    # The page may be open to others, whom this machine's folders do not concern.
    return str(error).replace(str(folder / ADAPTER_FILE), ADAPTER_FILE)
