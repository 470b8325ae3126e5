"""Settings read back from a PNG: ours exactly, and the infotext of other apps as far as it goes."""

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from shira_diffusion.errors import SettingError
from studio.errors import PictureError
from studio.infotext import PARAMETERS_KEY, RECORD_KEY, from_json
from studio.prompt import fitting_tags, read_tags
from studio.recipe import MAX_STRENGTH, MIN_STRENGTH, Recipe

MAX_BYTES = 64 * 2**20
"""Larger files are not looked into."""

_PAIR = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])*"|[^,]*)(?:,|$)')
_NEGATIVE = "Negative prompt:"


@dataclass(frozen=True)
class Found:
    """The settings in a picture, and what was read as something else than it says."""

    recipe: Recipe
    remarks: tuple[str, ...] = ()


def read_picture(path: Path, default: Recipe) -> Found:
    """The settings that a PNG carries; what its text leaves out is as in `default`.

    Raises `PictureError` for any other file and for one without settings.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise PictureError(f"The picture is larger than {MAX_BYTES >> 20} MB.")
        with Image.open(path, formats=["PNG"]) as image:
            image.load()  # text may follow the pixels
            texts = dict(image.info)
    except UnidentifiedImageError as error:
        raise PictureError("That is no PNG file; settings are only kept in those.") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise PictureError("The PNG file is damaged and cannot be read.") from error
    if isinstance(texts.get(RECORD_KEY), str):
        return Found(from_json(texts[RECORD_KEY]).recipe)
    if isinstance(texts.get(PARAMETERS_KEY), str):
        return from_infotext(texts[PARAMETERS_KEY], default)
    raise PictureError("This picture carries no settings: it was made or saved by another app.")


def from_infotext(text: str, default: Recipe) -> Found:
    """Read infotext as AUTOMATIC1111 writes it: prompt, negative prompt, a line of pairs.

    Raises `PictureError` where that gives no recipe.
    """
    *lines, last = text.strip().split("\n")
    pairs = {key: _unquoted(value) for key, value in _PAIR.findall(last)}
    if "Steps" not in pairs:
        lines, pairs = [*lines, last], {}
    starts = (number for number, line in enumerate(lines) if line.startswith(_NEGATIVE))
    cut = next(starts, len(lines))
    try:
        words, remarks = fitting_tags("\n".join(lines[:cut]).strip(), MIN_STRENGTH, MAX_STRENGTH)
        prompt, mix = read_tags(words)
        recipe = replace(
            default,
            prompt=prompt,
            negative_prompt="\n".join(lines[cut:]).removeprefix(_NEGATIVE).strip(),
            mix=mix,
            timing={},
            **_numbers(pairs),
        )
    except (SettingError, ValueError) as error:
        raise PictureError(f"The picture's settings cannot be read: {error}") from error
    return Found(recipe, remarks)


def _numbers(pairs: dict[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, name, kind in (
        ("Steps", "steps", int),
        ("CFG scale", "guidance", float),
        ("Seed", "seed", int),
    ):
        if key in pairs:
            found[name] = kind(pairs[key])
    if "Size" in pairs:
        width, _, height = pairs["Size"].partition("x")
        found["width"], found["height"] = int(width), int(height)
    if "Sampler" in pairs:
        spacing = pairs.get("Schedule type", "")
        found["sampler"] = f"{pairs['Sampler']} Karras" if spacing == "Karras" else pairs["Sampler"]
    return found


def _unquoted(value: str) -> str:
    try:
        return str(json.loads(value)) if value.startswith('"') else value.strip()
    except ValueError:
        return value
