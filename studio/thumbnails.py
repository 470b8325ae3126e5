"""Small copies of pictures: written beside adapters and image sets, or sent inside the page."""

import base64
import io
import logging
from functools import lru_cache
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

SIDE = 160
CARD_SIDE = 512
"""How large an adapter's own picture is kept (pixels)."""
FORMATS = ("PNG", "JPEG", "WEBP")
MAX_BYTES = 16 * 2**20

_QUALITY = 88
# What Pillow raises on files that are broken, hostile or not images at all.
UNREADABLE = (
    OSError, SyntaxError, ValueError, EOFError, RuntimeError, TypeError,
    UnidentifiedImageError, Image.DecompressionBombError,
)  # fmt: skip

log = logging.getLogger(__name__)


def thumbnail_uri(path: Path) -> str:
    """A `data:` URI of the picture at `path`, at most 160 px a side; empty if there is none."""
    try:
        stat = path.stat()
    except OSError:
        return ""
    return _encode(path, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=512)
def _encode(path: Path, _modified_ns: int, size: int) -> str:
    if size > MAX_BYTES:
        log.warning("%s is larger than %d MiB and is not shown", path, MAX_BYTES // 2**20)
        return ""
    try:
        with Image.open(path, formats=FORMATS) as picture:
            small = picture.convert("RGB")
    except UNREADABLE as error:
        log.warning("%s is not shown: %s", path, error)
        return ""
    small.thumbnail((SIDE, SIDE))
    return image_uri(small)


def image_uri(image: Image.Image) -> str:
    """A `data:` URI of a picture."""
    file = io.BytesIO()
    image.save(file, format="WEBP", quality=_QUALITY)
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode('ascii')}"


def write_thumbnail(
    source: Path, target: Path, side: int, formats: tuple[str, ...] = FORMATS
) -> bool:
    """Write a picture anew, upright and on white, at most `side` px a side; whether it can be read.

    The format is that of the target's name, and nothing but its pixels is left of the source.
    """
    try:
        with Image.open(source, formats=formats) as opened:
            upright = ImageOps.exif_transpose(opened)
            deep = upright.mode.startswith(("I", "F"))
            picture = (upright.convert("L") if deep else upright).convert("RGBA")
    except UNREADABLE:
        return False
    picture.thumbnail((side, side))
    canvas = Image.new("RGBA", picture.size, "white")
    Image.alpha_composite(canvas, picture).convert("RGB").save(target, quality=_QUALITY)
    return True
