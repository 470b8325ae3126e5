"""Export: a file for download, below the outputs folder under a path that nobody can guess."""

import os
import secrets
import shutil
import time
import zipfile
from pathlib import Path

from studio.library import ADAPTER_FILE, CARD_FILE, THUMBNAIL_FILE, Entry

KEPT_SECONDS = 24 * 3600


class Exports:
    """Files to be downloaded; those of yesterday are deleted."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def file(self, entry: Entry) -> Path:
        """The adapter's own file, named after it."""
        target = self.place() / f"{entry.name}.safetensors"
        source = entry.folder / ADAPTER_FILE
        try:
            os.link(source, target)
        except OSError:  # another disk, or one that knows no links
            shutil.copyfile(source, target)
        return target

    def bundle(self, entry: Entry) -> Path:
        """File, card and picture as a zip, which Import takes as it is."""
        target = self.place() / f"{entry.name}.zip"
        with zipfile.ZipFile(target, "w") as archive:
            for name in (ADAPTER_FILE, CARD_FILE, THUMBNAIL_FILE):
                if (entry.folder / name).is_file():
                    archive.write(entry.folder / name, f"{entry.name}/{name}")
        return target

    def place(self) -> Path:
        """A new folder; those that are older than a day go."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for old in self.folder.iterdir():
            if time.time() - old.stat().st_mtime > KEPT_SECONDS:
                shutil.rmtree(old, ignore_errors=True)
        made = self.folder / secrets.token_hex(16)
        made.mkdir()
        return made
