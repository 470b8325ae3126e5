"""How far a plan is."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """Adapters and drawings done of all, what failed, and what can still be begun.

    What waits for an adapter that failed cannot.
    """

    trained: int
    trainings: int
    drawn: int
    drawings: int
    failures: tuple[str, ...] = ()
    left: int = 0

    @property
    def finished(self) -> bool:
        """Whether everything is done."""
        return self.trained == self.trainings and self.drawn == self.drawings
