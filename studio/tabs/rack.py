"""What the adapter rack's value means: which adapters are on, how strongly, and when."""

from collections.abc import Mapping
from typing import Any

from shira_diffusion.errors import SettingError
from studio.timing import Timing

Chosen = Mapping[str, Mapping[str, Any]]
"""From an adapter's name to its `strength`, whether it is `on`, and its `timing`."""


def read_rack(chosen: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Strengths and timings of the adapters that are on; `Recipe` judges the values."""
    try:
        on = {name: one for name, one in (chosen or {}).items() if one.get("on", True)}
        mix = {name: one["strength"] for name, one in on.items()}
    except (AttributeError, KeyError, TypeError) as error:
        raise SettingError("The chosen adapters cannot be read: reload the page.") from error
    timing = {name: one["timing"] for name, one in on.items() if "timing" in one}
    return mix, {name: when for name, when in timing.items() if when != Timing.ALWAYS}


def write_rack(mix: Mapping[str, float], timing: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """The value that shows a mix."""
    return {
        name: {"strength": strength, "on": True, "timing": timing.get(name, Timing.ALWAYS)}
        for name, strength in mix.items()
    }
