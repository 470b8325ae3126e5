"""Finished pictures on disk: written whole or not at all, under names of their own."""

import os
import re
import secrets
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from PIL import Image, UnidentifiedImageError

from studio.errors import PictureError
from studio.infotext import RECORD_KEY, Record, from_json, png_text

_NAME = re.compile(r"\d{8}-\d{6}-\d{6}-[0-9a-f]{32}")


class PictureStore:
    """A folder of PNG files that carry their settings; a picture's id is its file name's stem.

    Ids start with the time in UTC, so that their order is the order of making, and end with random
    bits, so that two never meet. They are no secret: every visitor of a studio sees its recent
    pictures, whoever made them, and Gradio serves every file of the folder by its name.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self.folder.mkdir(parents=True, exist_ok=True)

    def save(self, image: Image.Image, record: Record) -> str:
        """Write `image` with its settings and return its id."""
        name = new_name()
        write_png(image, self.folder / f"{name}.png", record)
        return name

    def recent(self, limit: int) -> list[str]:
        """The newest ids, newest first; other files in the folder are passed over."""
        names = (path.stem for path in self.folder.glob("*.png"))
        return sorted((name for name in names if _NAME.fullmatch(name)), reverse=True)[:limit]

    def path(self, name: str) -> Path:
        """The file of an id; raises `PictureError` for any other string, paths included."""
        path = self.folder / f"{name}.png"
        if not _NAME.fullmatch(name) or not path.is_file():
            raise PictureError(
                f"There is no picture {name[:60]!r} any more: it was moved or deleted."
            )
        return path

    def record(self, name: str) -> Record:
        """The settings of a picture."""
        return read_record(self.path(name))


def read_record(path: Path) -> Record:
    """The settings that a PNG carries; raises `PictureError` if there are none to be read."""
    try:
        with Image.open(path) as image:
            image.load()  # text may follow the pixels
            text = image.info.get(RECORD_KEY)
    except (OSError, SyntaxError, ValueError, UnidentifiedImageError) as error:
        raise PictureError(f"The picture {path.stem} cannot be read: {error}") from error
    if not isinstance(text, str):
        raise PictureError(f"The picture {path.stem} carries no settings of this studio.")
    return from_json(text)


def is_name(name: str) -> bool:
    """Whether a string is an id as `new_name` makes them, and so no path."""
    return _NAME.fullmatch(name) is not None


def new_name() -> str:
    """A fresh id: UTC time to the microsecond and 128 random bits."""
    return f"{datetime.now(UTC):%Y%m%d-%H%M%S-%f}-{secrets.token_hex(16)}"


def made_words(name: str) -> str:
    """When the thing with this id was made, for people."""
    day, clock = name.split("-")[:2]
    return f"{day[:4]}-{day[4:6]}-{day[6:]} {clock[:2]}:{clock[2:4]} UTC"


def write_png(image: Image.Image, path: Path, record: Record | None = None) -> None:
    """Write a PNG so that `path` never holds half a file."""
    info = png_text(record) if record else None
    _write_whole(path, lambda file: image.save(file, format="PNG", pnginfo=info))


def write_text(text: str, path: Path) -> None:
    """Write a UTF-8 file so that `path` never holds half of it."""
    _write_whole(path, lambda file: file.write(text.encode("utf-8")))


def _write_whole(path: Path, write: Callable[[BinaryIO], object]) -> None:
    # tempfile would make it readable for nobody else, which the finished file should be.
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with partial.open("xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
