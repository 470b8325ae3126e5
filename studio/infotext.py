"""A picture's settings as text in its PNG: for people and other apps, and exactly, for us.

`parameters` holds the infotext that AUTOMATIC1111's web UI writes and reads; `shira_studio` holds
the same as JSON, complete, and is what we read back.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field

from PIL.PngImagePlugin import PngInfo

from shira_diffusion.errors import SettingError
from studio.errors import PictureError
from studio.prompt import write_tags
from studio.recipe import Recipe

PARAMETERS_KEY = "parameters"
RECORD_KEY = "shira_studio"
RECORD_VERSION = 1


@dataclass(frozen=True)
class AdapterUse:
    """One adapter of a mix; `sha256` is that of its file, `word_sha256` of its spoken word's."""

    name: str
    strength: float
    method: str
    sha256: str
    word_sha256: str = ""


@dataclass(frozen=True)
class Record:
    """How a picture came to be; `switch_ms` in milliseconds, `sampling_s` in seconds."""

    recipe: Recipe
    base: str
    fingerprints: Mapping[str, str] = field(default_factory=dict)
    adapters: tuple[AdapterUse, ...] = ()
    sampler: str = ""
    switch_ms: float = 0.0
    sampling_s: float = 0.0


def to_infotext(record: Record) -> str:
    """Write the settings as infotext: prompt, negative prompt, one line of `key: value` pairs.

    The adapters stand behind the prompt as tags: that is where other apps look for them.
    """
    recipe = record.recipe
    lines = [" ".join(filter(None, (recipe.prompt.strip(), write_tags(recipe.mix))))]
    if recipe.negative_prompt.strip():
        lines.append(f"Negative prompt: {recipe.negative_prompt.strip()}")
    pairs = {
        "Steps": recipe.steps,
        "Sampler": record.sampler,
        "CFG scale": f"{recipe.guidance:g}",
        "Seed": recipe.seed,
        "Size": f"{recipe.width}x{recipe.height}",
        "Model": record.base,
        "Base fingerprint": _named(record.fingerprints.items()),
        "Adapter timing": _named(recipe.timing.items()),
        "Adapter hashes": _named((use.name, use.sha256) for use in record.adapters),
        "Version": "SHiRA Studio",
    }
    lines.append(
        ", ".join(f"{key}: {_quoted(str(value))}" for key, value in pairs.items() if value != "")
    )
    return "\n".join(lines)


def _named(pairs: Iterable[tuple[str, str]]) -> str:
    # Twelve digits tell hashes apart; the JSON has them in full.
    return ", ".join(f"{name}: {value[:12]}" for name, value in pairs)


def _quoted(value: str) -> str:
    """Quote what would end a pair early, as AUTOMATIC1111's own writer does: as a JSON string."""
    return json.dumps(value, ensure_ascii=False) if any(c in value for c in ',:\n"') else value


def to_json(record: Record) -> str:
    """Write the whole record as one JSON object."""
    content = asdict(record)
    content["version"] = RECORD_VERSION
    return json.dumps(content, ensure_ascii=False, sort_keys=True)


def from_json(text: str) -> Record:
    """Read a record back; raises `PictureError` for anything that `to_json` would not write."""
    try:
        content = json.loads(text)
        version = content.pop("version")
        if version != RECORD_VERSION:
            raise PictureError(
                f"The picture's settings have version {version}; "
                f"this studio reads {RECORD_VERSION}."
            )
        content["recipe"] = Recipe(**content["recipe"])
        content["adapters"] = tuple(AdapterUse(**use) for use in content["adapters"])
        record = Record(**content)
        to_infotext(record)
    except (
        ValueError, TypeError, KeyError, AttributeError, RecursionError, SettingError,
    ) as error:  # fmt: skip
        raise PictureError(f"The picture's settings cannot be read: {error}") from error
    if not all(isinstance(text, str) for text in (record.base, record.sampler)):
        raise PictureError("The picture's settings cannot be read: they name no base or sampler.")
    return record


def png_text(record: Record) -> PngInfo:
    """Both texts, ready for `Image.save(..., pnginfo=...)`."""
    info = PngInfo()
    info.add_text(PARAMETERS_KEY, to_infotext(record))
    info.add_text(RECORD_KEY, to_json(record))
    return info
