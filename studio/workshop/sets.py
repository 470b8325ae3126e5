"""Image sets: the pictures and captions that people gather on the page, kept on disk as they are.

A set is a folder `<id>` with pictures under names made here (`0001.png`), a `.txt` beside each that
holds its captions, one a line, small copies in `thumbs/`, and `set.json`.
"""

import hashlib
import json
import re
import secrets
import shutil
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from shira_diffusion.errors import ShiraError
from studio.shelf.naming import plain
from studio.shelf.trash import Discarded, Trash
from studio.thumbnails import write_thumbnail
from studio.workshop.captions import cleaned, from_file_name
from studio.workshop.pictures import FORMATS, Checked, check

MAX_IMAGES = 1000
MAX_TEXT = 256 * 1024
MOST_NAMES = 3
THUMBNAIL_SIDE = 192
_ID = re.compile(r"\d{8}-\d{6}-[0-9a-f]{12}")
_IMAGE = re.compile(r"\d{4,}\.(?!txt)[a-z]{3,4}")
_NOTE, _THUMBS, _REMOVED, _CREDITS = "set.json", "thumbs", "removed", "CREDITS.md"


class SetError(ShiraError):
    """A set, or a picture of one, is not there or cannot be kept."""


@dataclass(frozen=True)
class SetImage:
    """One picture: `name` is its file's, `told` what the file was called when it came."""

    name: str
    told: str
    captions: str
    thumbnail: Path


@dataclass(frozen=True)
class ImageSet:
    """A set at one moment."""

    id: str
    title: str
    folder: Path
    images: tuple[SetImage, ...]
    told: Mapping[str, str]
    """What every picture was called that ever came, by the name of its file."""

    @property
    def missing(self) -> int:
        """How many pictures have no caption."""
        return sum(1 for image in self.images if not image.captions)

    @property
    def fault(self) -> str:
        """Which pictures still need a caption, by the names that they came with; else nothing."""
        names = [f"“{image.told}”" for image in self.images if not image.captions]
        if not names:
            return ""
        more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
        shows = "show" if len(names) > 1 else "shows"
        told = ", ".join(names[:MOST_NAMES])
        return f"Write what {told}{more} {shows}: every picture needs a caption."


@dataclass(frozen=True)
class _Note:
    """What `set.json` says: the title, and for each picture what it was called and its hash."""

    title: str
    told: Mapping[str, str]
    digests: Mapping[str, str]


class ImageSets:
    """All sets below one folder; every change is on disk when its call returns."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.trash = Trash(folder / ".trash")
        self._lock = threading.RLock()

    def ids(self) -> list[str]:
        """The sets, newest first."""
        if not self.folder.is_dir():
            return []
        found = (path.name for path in self.folder.iterdir() if _ID.fullmatch(path.name))
        return sorted((one for one in found if self._note_path(one).is_file()), reverse=True)

    def title(self, set_id: str) -> str:
        """What people call the set."""
        return self._note(set_id).title

    def find(self, set_id: str) -> ImageSet:
        """The set as it is now; raises `SetError` if there is none of this id."""
        folder, note = self._folder(set_id), self._note(set_id)
        names = sorted(path.name for path in folder.iterdir() if _IMAGE.fullmatch(path.name))
        images = tuple(_image(folder, name, note) for name in names)
        return ImageSet(set_id, note.title, folder, images, note.told)

    def create(self, title: str) -> str:
        """Make an empty set and return its id."""
        set_id = f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(6)}"
        (self.folder / set_id / _THUMBS).mkdir(parents=True)
        self._write_note(set_id, _Note(plain(title, 80) or "Untitled set", {}, {}))
        return set_id

    def discard(self, set_id: str) -> Discarded:
        """Throw a set away, trainings keep their own copies; `restore` is the inverse."""
        with self._lock:
            return self.trash.discard(self._folder(set_id), self.title(set_id))

    def restore(self, ticket: str) -> str:
        """Bring back a set that was thrown away; return its id."""
        set_id = self.trash.find(ticket).name
        self.trash.restore(ticket, self.folder / set_id)
        return set_id

    def rename(self, set_id: str, title: str) -> None:
        """Give the set another title."""
        with self._lock:
            note = self._note(set_id)
            self._write_note(set_id, replace(note, title=plain(title, 80) or note.title))

    def add(self, set_id: str, files: Iterable[Path]) -> list[str]:
        """Copy pictures in, and captions from .txt files of the same stem; say what was left out.

        A picture without such a file is captioned by its own name, where that has words. The text
        of a CREDITS.md is kept too, for the card of the adapter.
        """
        files = sorted(files, key=lambda file: file.name)
        texts = {file.stem: _read_text(file) for file in files if file.suffix == ".txt"}
        remarks = []
        for file in files:
            if file.name == _CREDITS:
                (self._folder(set_id) / _CREDITS).write_text(_read_text(file), encoding="utf-8")
            if file.name == _CREDITS or file.suffix == ".txt":
                continue
            try:
                self._add(set_id, file, texts.get(file.stem))
            except SetError as error:
                remarks.append(f"{plain(file.name, 80)}: {error}")
        return remarks

    def _add(self, set_id: str, file: Path, captions: str | None) -> None:
        checked = check(file)
        if isinstance(checked, str):
            raise SetError(checked)
        with self._lock:
            note, folder = self._note(set_id), self._folder(set_id)
            if any((folder / name).is_file() for name in _same(note, checked)):
                raise SetError("it is in the set already")
            if len(note.told) >= MAX_IMAGES:
                raise SetError(f"a set holds at most {MAX_IMAGES} pictures")
            name = self._store(folder, file, checked, captions)
            told = {**note.told, name: plain(file.name, 80)}
            digests = {**note.digests, name: checked.digest}
            self._write_note(set_id, _Note(note.title, told, digests))

    def _store(self, folder: Path, file: Path, checked: Checked, captions: str | None) -> str:
        used = (int(path.stem) for path in folder.rglob("*") if path.stem.isdecimal())
        name = f"{max(used, default=0) + 1:04d}{checked.suffix}"
        text = from_file_name(file.name) if captions is None else captions
        try:
            write_thumbnail(file, _thumbnail(folder, name), THUMBNAIL_SIDE, FORMATS)
            _captions_path(folder, name).write_text(cleaned(text), encoding="utf-8")
            partial = folder / f".{name}.partial"
            shutil.copyfile(file, partial)
            partial.replace(folder / name)
        except OSError as error:
            raise SetError(f"it cannot be kept ({error.strerror or error})") from error
        return name

    def caption(self, set_id: str, captions: Mapping[str, str]) -> None:
        """Set the captions of pictures by their file names; one a line."""
        with self._lock:
            folder = self._folder(set_id)
            known = {image.name: image for image in self.find(set_id).images}
            for name, text in captions.items():
                if name in known and (text := cleaned(text)) != known[name].captions:
                    partial = folder / f".{name}.txt.partial"
                    partial.write_text(text, encoding="utf-8")
                    partial.replace(_captions_path(folder, name))

    def remove(self, set_id: str, name: str) -> None:
        """Take a picture out; `put_back` is the inverse."""
        self._move(name, self._folder(set_id), self._folder(set_id) / _REMOVED)

    def put_back(self, set_id: str, name: str) -> None:
        """Bring back a picture that was taken out."""
        self._move(name, self._folder(set_id) / _REMOVED, self._folder(set_id))

    def _move(self, name: str, source: Path, target: Path) -> None:
        with self._lock:
            if not _IMAGE.fullmatch(name) or not (source / name).is_file():
                raise SetError("This picture is not there any more.")
            target.mkdir(exist_ok=True)
            _captions_path(source, name).rename(_captions_path(target, name))
            (source / name).rename(target / name)

    def copy_to(self, set_id: str, folder: Path) -> None:
        """Write the pictures and captions as they are now into `folder`, for a run to keep."""
        with self._lock:
            found = self.find(set_id)
            folder.mkdir(parents=True)
            for image in found.images:
                shutil.copyfile(found.folder / image.name, folder / image.name)
                source = _captions_path(found.folder, image.name)
                shutil.copyfile(source, _captions_path(folder, image.name))
            if (found.folder / _CREDITS).is_file():
                shutil.copyfile(found.folder / _CREDITS, folder / _CREDITS)

    def gather(self, folder: Path, title: str) -> str:
        """The set that holds just what `copy_to` wrote into `folder`, made anew if there is none.

        Returns its id.
        """
        wanted = _contents(folder)
        for set_id in self.ids():
            if self._contents(set_id) == wanted:
                return set_id
        set_id = self.create(title)
        self.add(set_id, list(folder.iterdir()) if folder.is_dir() else [])
        return set_id

    def _contents(self, set_id: str) -> list[tuple[str, str]]:
        digests = self._note(set_id).digests
        return sorted(
            (digests.get(image.name, ""), image.captions) for image in self.find(set_id).images
        )

    def _folder(self, set_id: str) -> Path:
        if not _ID.fullmatch(set_id or "") or not self._note_path(set_id).is_file():
            raise SetError("This image set is not there any more: choose or make another one.")
        return self.folder / set_id

    def _note_path(self, set_id: str) -> Path:
        return self.folder / set_id / _NOTE

    def _note(self, set_id: str) -> _Note:
        self._folder(set_id)
        stored = json.loads(self._note_path(set_id).read_text(encoding="utf-8"))
        return _Note(stored["title"], stored["told"], stored["digests"])

    def _write_note(self, set_id: str, note: _Note) -> None:
        path = self._note_path(set_id)
        partial = path.with_suffix(".partial")
        stored = {"title": note.title, "told": dict(note.told), "digests": dict(note.digests)}
        partial.write_text(json.dumps(stored), encoding="utf-8")
        partial.replace(path)


def _same(note: _Note, checked: Checked) -> list[str]:
    return [name for name, digest in note.digests.items() if digest == checked.digest]


def _contents(folder: Path) -> list[tuple[str, str]]:
    """The hash and the captions of every picture in a copy of a set."""
    found = []
    for path in folder.glob("*"):
        if _IMAGE.fullmatch(path.name):
            with path.open("rb") as opened:
                digest = hashlib.file_digest(opened, "sha256").hexdigest()
            text = _captions_path(folder, path.name)
            found.append((digest, _read_text(text) if text.is_file() else ""))
    return sorted(found)


def _image(folder: Path, name: str, note: _Note) -> SetImage:
    try:
        captions = _captions_path(folder, name).read_text(encoding="utf-8")
    except OSError:
        captions = ""
    return SetImage(name, note.told.get(name, name), captions, _thumbnail(folder, name))


def _captions_path(folder: Path, name: str) -> Path:
    return (folder / name).with_suffix(".txt")


def _thumbnail(folder: Path, name: str) -> Path:
    return (folder / _THUMBS / name).with_suffix(".webp")


def _read_text(file: Path) -> str:
    with file.open(encoding="utf-8-sig", errors="replace") as opened:
        return opened.read(MAX_TEXT)
