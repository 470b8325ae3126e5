"""How adapters get in each other's way, pair by pair: the measures, and what they say in words."""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from shira_diffusion import Adapter, metrics
from shira_diffusion.metrics import Meeting


@dataclass(frozen=True)
class Pair:
    """Two adapters by name, and how they meet in each weight that either touches.

    `entries` are those of the smaller one; `chance` is the overlap that two adapters of their
    sizes would have if their entries were drawn at random.
    """

    a: str
    b: str
    meetings: tuple[Meeting, ...]
    entries: int
    chance: float

    @cached_property
    def shared(self) -> int:
        """How many entries both change."""
        return sum(one.shared for one in self.meetings)

    @property
    def overlap(self) -> float:
        """The share of the smaller one's entries that both change."""
        return self.shared / self.entries if self.entries else 0.0

    @cached_property
    def opposed(self) -> float:
        """The share of the shared entries that they change in opposite directions."""
        return sum(one.opposed for one in self.meetings) / self.shared if self.shared else 0.0

    @cached_property
    def awom(self) -> float:
        """The mean of |A' B| over the weights."""
        return _mean([one.awom for one in self.meetings])

    @cached_property
    def relative_awom(self) -> float:
        """AWOM as a share of the most that changes of these sizes can have."""
        bound = _mean([one.bound for one in self.meetings])
        return self.awom / bound if bound else 0.0

    @cached_property
    def awor(self) -> float:
        """The mean share of zeros in A' B; 1 for adapters that share no weight."""
        return _mean([one.awor for one in self.meetings]) if self.meetings else 1.0

    @property
    def verdict(self) -> str:
        """What the numbers suggest, in a sentence."""
        if not self.shared:
            return "They change different values: whatever the method, both stay as they are."
        if self.overlap < 0.1:
            return "They hardly meet: a plain sum keeps nearly all of both."
        if self.opposed > 0.3:
            return (
                "They meet often and pull apart in many places: there a sum takes from both. "
                "TIES or Strongest decides for one."
            )
        return "They meet often and mostly agree: a sum overshoots there, Mean or TIES does not."


@dataclass(frozen=True)
class Measuring:
    """How far the measuring is: `done` of `total` weights of all pairs."""

    done: int
    total: int


def measured(adapters: Mapping[str, Adapter]) -> Iterator[Measuring | Pair]:
    """Every pair of `adapters` as it is finished, and how far it is after each weight."""
    pairs = list(itertools.combinations(adapters, 2))
    total = sum(len(adapters[a].deltas.keys() | adapters[b].deltas.keys()) for a, b in pairs)
    done = 0
    for a, b in pairs:
        meetings = []
        for meeting in metrics.meetings(adapters[a], adapters[b]):
            meetings.append(meeting)
            done += 1
            yield Measuring(done, total)
        first, second = adapters[a], adapters[b]
        smaller = min(first.nnz, second.nnz)
        yield Pair(a, b, tuple(meetings), smaller, _chance(first, second, smaller))


def _chance(a: Adapter, b: Adapter, smaller: int) -> float:
    expected = sum(
        delta.nnz * other.density
        for name, delta in a.deltas.items()
        if (other := b.deltas.get(name)) is not None
    )
    return expected / smaller if smaller else 0.0


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0
