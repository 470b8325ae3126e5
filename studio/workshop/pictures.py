"""Is this file a picture to train on? Decoded whole before it is kept."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from studio.thumbnails import UNREADABLE

MAX_BYTES = 64 * 2**20
MAX_PIXELS = 80_000_000  # beyond this Pillow itself begins to warn
FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "BMP", "GIF", "TIFF")
# Some phones write two pictures into one JPEG.
_SUFFIXES = {"JPEG": ".jpg", "MPO": ".jpg", "TIFF": ".tif"}


@dataclass(frozen=True)
class Checked:
    """A picture that can be read: the ending of its format, the sha256 of its file."""

    suffix: str
    digest: str


def check(file: Path) -> Checked | str:
    """What the file is, or in words why it is not taken."""
    if file.stat().st_size > MAX_BYTES:
        return f"it is larger than {MAX_BYTES // 2**20} MiB"
    try:
        with Image.open(file, formats=FORMATS) as picture:
            suffix = _SUFFIXES.get(str(picture.format), f".{picture.format}".lower())
            if picture.width * picture.height > MAX_PIXELS:
                return f"it has more than {MAX_PIXELS // 1_000_000} million pixels"
            picture.load()
    except UNREADABLE:
        return "it is not a picture that can be read (save it as PNG or JPEG)"
    with file.open("rb") as opened:
        return Checked(suffix, hashlib.file_digest(opened, "sha256").hexdigest())
