"""A small picture of what an adapter does: beside its file, and in it for programs that show it."""

import base64
import io
from pathlib import Path

from PIL import Image

from shira_diffusion.formats import container
from shira_diffusion.modelspec import THUMBNAIL_KEY

SIDE = 256
"""The longest side in pixels that ModelSpec allows."""

_QUALITY = 85


def add_thumbnail(adapter: Path, picture: Image.Image) -> None:
    """Write `thumbnail.png` beside the adapter file, and a JPEG of it into the file's metadata.

    As ModelSpec 1.0.1 has it: https://github.com/Stability-AI/ModelSpec.
    """
    small = picture.convert("RGB")
    small.thumbnail((SIDE, SIDE))
    small.save(adapter.with_name("thumbnail.png"))
    buffer = io.BytesIO()
    small.save(buffer, format="JPEG", quality=_QUALITY)
    text = base64.b64encode(buffer.getvalue()).decode()
    file = container.read(adapter)
    stated = {**file.metadata, THUMBNAIL_KEY: f"data:image/jpeg;base64,{text}"}
    container.write(adapter, file.tensors, stated)
