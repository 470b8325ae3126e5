"""Adapter pictures small enough to travel inside the page, so that no folder has to be served."""

import base64
import io
import logging
from functools import lru_cache
from pathlib import Path

from PIL import Image, UnidentifiedImageError

SIDE = 160
MAX_BYTES = 16 * 2**20

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
        with Image.open(path, formats=("PNG", "JPEG", "WEBP")) as picture:
            small = picture.convert("RGB")
    except (
        OSError,
        SyntaxError,
        ValueError,
        UnidentifiedImageError,
        Image.DecompressionBombError,
    ) as error:
        log.warning("%s is not shown: %s", path, error)
        return ""
    small.thumbnail((SIDE, SIDE))
    return image_uri(small)


def image_uri(image: Image.Image) -> str:
    """A `data:` URI of a picture."""
    file = io.BytesIO()
    image.save(file, format="WEBP", quality=88)
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode('ascii')}"
