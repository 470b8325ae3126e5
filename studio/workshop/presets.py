"""The trainer's presets, read as the data that they are: what the page offers for a base."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from studio.workshop.captions import CONCEPT, STYLE

PRESETS = Path(__file__).parents[2] / "training" / "presets"
METHODS = {
    "shira": "SHiRA: sparse, switches at once",
    "lora": "LoRA: low rank, for any other app",
    "dora": "DoRA: LoRA with lengths of its own",
    "symlora": "SymLoRA: LoRA of about half the size",
    "shira-dora": "SHiRA over DoRA: sparse, learned through low rank",
}
"""What the trainer can train; a test holds it to the trainer's own list."""


@dataclass(frozen=True)
class Preset:
    """One file of `training/presets`; `kind` is empty where it is good for any."""

    name: str
    kind: str
    about: str
    table: Mapping[str, Any]

    @property
    def title(self) -> str:
        """What the page lists it as."""
        return f"{self.name} · {self.table.get('steps', '?')} steps"

    @property
    def small(self) -> bool:
        """Whether it is for the embedded base rather than for SDXL."""
        return str(self.table.get("base", "")).startswith("models/")

    def value(self, key: str, method: str) -> Any:
        """What a run of `method` has for this setting; None where the trainer's default holds."""
        own = self.table.get(method)
        settings = {**self.table, **(own if isinstance(own, dict) else {})}
        return settings.get(key)


def read_presets(folder: Path = PRESETS) -> tuple[Preset, ...]:
    """Every preset in order of name."""
    return tuple(_read(path) for path in sorted(folder.glob("*.toml")))


def offered(presets: tuple[Preset, ...], *, small: bool, kind: str) -> list[Preset]:
    """Those for a base of this size and for a style or a concept, the most fitting first."""
    fitting = [one for one in presets if one.small == small and one.kind in ("", kind)]
    return sorted(fitting, key=lambda one: (not one.kind, one.name))


def _read(path: Path) -> Preset:
    text = path.read_text(encoding="utf-8")
    kind = next((one for one in (STYLE, CONCEPT) if path.stem.endswith(one)), "")
    comment = [line for line in text.splitlines()[:1] if line.startswith("#")]
    about = comment[0].removeprefix("#").strip() if comment else ""
    return Preset(path.stem, kind, about, tomllib.loads(text))
