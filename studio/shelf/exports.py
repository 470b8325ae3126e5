"""Export: a file for download, below the outputs folder under a path that nobody can guess."""

import os
import secrets
import shutil
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path

from shira_diffusion.cards import EMBEDDINGS, SPARSE
from shira_diffusion.formats import lora, peft
from studio.library import ADAPTER_FILE, CARD_FILE, THUMBNAIL_FILE, AdapterLibrary, Entry

KEPT_SECONDS = 24 * 3600
FORMATS = {
    "file": "The file as it is",
    "zip": "Zip with card and picture",
    "peft": "PEFT SHiRA (zip)",
    "lora-32": "LoRA of rank 32",
    "lora-64": "LoRA of rank 64",
}
"""What an adapter can be downloaded as."""

POOR = 0.8
"""Below this share of the change's energy a stand-in is called poor."""


@dataclass(frozen=True)
class Parcel:
    """A file to be downloaded, and what is worth knowing about it."""

    path: Path
    remark: str = ""


def offered(entry: Entry) -> list[str]:
    """The keys of `FORMATS` that make sense for this adapter."""
    others = ["peft", "lora-32", "lora-64"] if entry.info.method in SPARSE else []
    return ["file", "zip", *others]


class Exports:
    """Files to be downloaded; those of yesterday are deleted."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def pack(self, library: AdapterLibrary, entry: Entry, form: str) -> Parcel:
        """Write the adapter in one of `FORMATS`; raises `ShiraError` where it cannot be that."""
        if form == "zip":
            return self._bundle(entry)
        if form == "peft":
            return self._peft(library, entry)
        if form.startswith("lora-"):
            return self._lora(library, entry, int(form.removeprefix("lora-")))
        return self._file(entry)

    def _file(self, entry: Entry) -> Parcel:
        target = self._place() / f"{entry.name}.safetensors"
        source = entry.folder / ADAPTER_FILE
        try:
            os.link(source, target)
        except OSError:  # another disk, or one that knows no links
            shutil.copyfile(source, target)
        return Parcel(target)

    def _bundle(self, entry: Entry) -> Parcel:
        """File, card, picture and a new word, which Import takes as they are."""
        files = [ADAPTER_FILE, CARD_FILE, THUMBNAIL_FILE, EMBEDDINGS]
        target = self._place() / f"{entry.name}.zip"
        _zip(target, entry.folder, [name for name in files if (entry.folder / name).is_file()])
        return Parcel(target)

    def _peft(self, library: AdapterLibrary, entry: Entry) -> Parcel:
        place = self._place()
        padding = peft.save(library.load(entry), place / entry.name)
        target = place / f"{entry.name}-peft.zip"
        _zip(target, place / entry.name, [path.name for path in (place / entry.name).iterdir()])
        shutil.rmtree(place / entry.name)
        remark = (
            f"PEFT stores r = {padding.r} for every layer: {padding.share:.0%} zeros were added."
        )
        return Parcel(target, remark)

    def _lora(self, library: AdapterLibrary, entry: Entry, rank: int) -> Parcel:
        target = self._place() / f"{entry.name}-rank{rank}.safetensors"
        kept = lora.save(library.load(entry), target, rank).kept
        remark = f"Rank {rank} keeps {kept:.0%} of the change."
        if kept < POOR:
            remark += " It will look different: take a higher rank, or the file as it is."
        return Parcel(target, remark)

    def _place(self) -> Path:
        """A new folder; those that are older than a day go."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for old in self.folder.iterdir():
            if time.time() - old.stat().st_mtime > KEPT_SECONDS:
                shutil.rmtree(old, ignore_errors=True)
        made = self.folder / secrets.token_hex(16)
        made.mkdir()
        return made


def _zip(target: Path, folder: Path, names: list[str]) -> None:
    with zipfile.ZipFile(target, "w") as archive:
        for name in sorted(names):
            archive.write(folder / name, f"{target.stem}/{name}")
