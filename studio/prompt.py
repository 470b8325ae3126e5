"""Adapters named inside a prompt, as in `a fox <lora:ink:0.8>`: AUTOMATIC1111's way to mix them."""

import re
from collections.abc import Mapping

from shira_diffusion.errors import SettingError

_TAG = re.compile(r"<(?:lora|shira):([^<>]*)>", re.IGNORECASE)


def fitting_tags(prompt: str, low: float, high: float) -> tuple[str, tuple[str, ...]]:
    """A prompt of another app with strengths that can be used here, and a remark on each change.

    Of several strengths (AUTOMATIC1111 takes one for the text encoder, one for the UNet) the first
    one counts, as far as it is from `low` to `high`.
    """
    remarks = []

    def fitting(found: re.Match[str]) -> str:
        name, *strengths = found.group(1).split(":")
        try:
            strength = min(max(float(strengths[0]), low), high)
            fits = len(strengths) == 1 and strength == float(strengths[0])
        except (IndexError, ValueError):
            return found.group(0)
        if fits:
            return found.group(0)
        remarks.append(f"{found.group(0)} counts as strength {strength:g} here.")
        return f"<lora:{name}:{strength:g}>"

    return _TAG.sub(fitting, prompt), tuple(remarks)


def read_tags(prompt: str) -> tuple[str, dict[str, float]]:
    """The prompt without its tags, and the strength of each adapter that they name.

    `<lora:NAME>` counts as strength 1; `shira` in place of `lora` means the same. The last tag of
    a name holds. Raises `SettingError` for a tag that is neither.
    """
    mix = dict(_read(found.group(0), found.group(1)) for found in _TAG.finditer(prompt))
    return (_without_tags(prompt), mix) if mix else (prompt, {})


def write_tags(mix: Mapping[str, float]) -> str:
    """The tags of a mix, as `read_tags` reads them."""
    return " ".join(f"<lora:{name}:{strength:g}>" for name, strength in mix.items())


def _read(tag: str, inside: str) -> tuple[str, float]:
    name, _, strength = inside.partition(":")
    if not name.strip():
        raise SettingError(f"{tag!r} names no adapter: write <lora:NAME:STRENGTH>.")
    if not strength.strip():
        return name.strip(), 1.0
    try:
        return name.strip(), float(strength)
    except ValueError as error:
        raise SettingError(
            f"In {tag!r} the strength is {strength!r}: write one number, as in <lora:NAME:0.8>."
        ) from error


def _without_tags(prompt: str) -> str:
    lines = []
    for line in prompt.split("\n"):
        parts = (" ".join(part.split()) for part in _TAG.sub(" ", line).split(","))
        kept = ", ".join(part for part in parts if part)
        lines.append(kept if _TAG.search(line) else line)
    return "\n".join(lines).strip()
