"""The pieces of work that a plan comes to: adapters to train, mixes to draw."""

from dataclasses import dataclass
from typing import Any

from evaluation.bench import Bench
from evaluation.drawings import Drawing
from evaluation.trainings import Training


@dataclass(frozen=True)
class Train:
    """A piece of work: one adapter."""

    training: Training

    @property
    def key(self) -> str:
        """What its line is named by."""
        return self.training.name

    @property
    def name(self) -> str:
        """What to call it."""
        return self.training.name

    @property
    def recipe(self) -> str:
        """The recipe it is of."""
        return self.training.recipe.name

    def __call__(self, bench: Bench) -> dict[str, Any]:
        """Return the line about the adapter."""
        return bench.train(self.training)


@dataclass(frozen=True)
class Draw:
    """A piece of work: the pictures of one mix."""

    drawing: Drawing

    @property
    def key(self) -> str:
        """What its first line is named by."""
        return next(iter(self.drawing.every_key()))

    @property
    def name(self) -> str:
        """What to call it."""
        mix = "+".join(self.drawing.adapters) or "no adapter"
        return f"{mix} by {self.drawing.method.name}, seed {self.drawing.training_seed}"

    @property
    def recipe(self) -> str:
        """The recipe it is of."""
        return self.drawing.method.recipe

    def __call__(self, bench: Bench) -> list[dict[str, Any]]:
        """Return the records of the pictures."""
        return bench.draw(self.drawing)


Piece = Train | Draw
