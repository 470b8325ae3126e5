"""How much of a change is kept when it is stored with fewer numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class Energy:
    """Squared L2 norms by weight: of the `whole` change, and of the part that was not `lost`."""

    whole: Mapping[str, float]
    lost: Mapping[str, float]

    @cached_property
    def shares(self) -> Mapping[str, float]:
        """The share of each weight's energy that is kept, 0 to 1; 1 where nothing changes."""
        return {
            name: max(0.0, 1.0 - self.lost[name] / whole) if whole else 1.0
            for name, whole in self.whole.items()
        }

    @property
    def kept(self) -> float:
        """The share of all energy that is kept, 0 to 1."""
        whole = sum(self.whole.values())
        return max(0.0, 1.0 - sum(self.lost.values()) / whole) if whole else 1.0

    @property
    def error(self) -> float:
        """The L2 norm of what is lost over that of the whole change."""
        whole = sum(self.whole.values())
        return float((sum(self.lost.values()) / whole) ** 0.5) if whole else 0.0
