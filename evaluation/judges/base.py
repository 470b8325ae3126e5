"""What every judge is asked, and answers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from PIL import Image
from torch import Tensor

Scores = Mapping[str, float]
"""Figures of one picture by their names."""


@dataclass(frozen=True)
class Drawn:
    """A picture, the prompt it was drawn for, and the concept and style that should be in it.

    `references` are real pictures of what the active adapters have learned.
    """

    image: Image.Image
    prompt: str
    concept: str
    style: str
    references: tuple[Path, ...] = ()


class Judge(Protocol):
    """Scores pictures; those of one prompt differ in their seeds alone."""

    def look(self, pictures: Sequence[Drawn]) -> list[Scores]:
        """Return the scores of each picture, in their order."""


def mean_distance(distances: Tensor, prompts: Sequence[str]) -> list[float | None]:
    """Return each picture's mean distance to the others of its prompt, None where it is alone.

    `distances` is (N, N); this is how diverse a prompt's pictures are.
    """
    found: list[float | None] = []
    for place, prompt in enumerate(prompts):
        others = [other for other, said in enumerate(prompts) if said == prompt and other != place]
        values = distances[place, torch.tensor(others, dtype=torch.long)]
        found.append(float(values.mean()) if others else None)
    return found
