"""What is known of a blend that is made: how it was asked for, what it changes, who met whom."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from shira_diffusion import Adapter
from shira_diffusion.metrics import Meeting
from studio.blends.blend import Blend
from studio.blends.interference import Pair


@dataclass(frozen=True)
class Account:
    """A blend in numbers: `entries` of its own, `before` of all its parts counted together.

    `density` is the share of changed entries among those of the weights that it touches.
    """

    blend: Blend
    entries: int
    before: int
    density: float
    pairs: tuple[Pair, ...]

    @classmethod
    def of(
        cls, blend: Blend, made: Adapter, parts: Mapping[str, Adapter], pairs: Sequence[Pair]
    ) -> "Account":
        """That of `made`, blended of `parts`."""
        before = sum(one.nnz for one in parts.values())
        return cls(blend, made.nnz, before, made.density, tuple(pairs))

    def to_json(self) -> str:
        """As it lies beside a draft."""
        return json.dumps({**asdict(self), "blend": self.blend.plain()})

    @classmethod
    def from_json(cls, text: str) -> "Account":
        """Read it again; raises `ValueError`, `LookupError`, `TypeError` or `SettingError`."""
        stored = json.loads(text)
        return cls(
            blend=Blend.read(stored["blend"]),
            entries=int(stored["entries"]),
            before=int(stored["before"]),
            density=float(stored["density"]),
            pairs=tuple(_pair(one) for one in stored["pairs"]),
        )


def _pair(stored: Mapping[str, Any]) -> Pair:
    meetings = tuple(Meeting(**one) for one in stored["meetings"])
    return Pair(**{**stored, "meetings": meetings})
