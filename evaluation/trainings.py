"""Which adapters a plan needs, and where each of them is kept."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from evaluation.plan import CONCEPT, Plan, Recipe, Subject, digest
from training.run import NUMBERS
from training.settings import read_preset


@dataclass(frozen=True)
class Training:
    """One adapter to train: a recipe on a subject with a seed; `avoids` are trained before it."""

    recipe: Recipe
    subject: Subject
    seed: int
    base: str
    preset: str
    avoids: tuple["Training", ...] = ()

    @property
    def settings(self) -> dict[str, Any]:
        """The trainer's settings that differ from the preset's, seed and base included."""
        own = self.recipe.settings(self.subject.kind)
        return {**own, "seed": self.seed, "base": self.base}

    @cached_property
    def name(self) -> str:
        """The adapter's name and folder: another one whenever anything that shapes it differs."""
        shaped_by = {
            "settings": self.settings,
            "trainer": self.recipe.trainer,
            "preset": read_preset(self.preset),
            "numbers": NUMBERS,
            "data": self.subject.data,
            "avoids": [other.name for other in self.avoids],
        }
        readable = f"{self.subject.name}-{self.recipe.name}-{self.seed}".replace(" ", "-")
        return f"{readable}-{digest(shaped_by)}"

    def file(self, work: Path) -> Path:
        """Return where the finished adapter is kept; it is there as a whole or not at all."""
        return work / "adapters" / self.name / "adapter.safetensors"


def training_of(plan: Plan, recipe: Recipe, subject: Subject, seed: int) -> Training:
    """Return the training of one subject by a recipe of the plan."""
    before = plan.styles if recipe.disjoint and subject.kind == CONCEPT else ()
    return Training(
        recipe,
        subject,
        seed,
        plan.base,
        plan.presets[subject.kind],
        tuple(training_of(plan, recipe, other, seed) for other in before),
    )


def all_trainings(plan: Plan) -> list[Training]:
    """Return every adapter that the plan's methods need, once, one training seed after another."""
    found = [
        training_of(plan, plan.recipes[recipe], subject, seed)
        for seed in plan.training_seeds
        for recipe in plan.used_recipes
        for subject in plan.subjects
    ]
    return list({training.name: training for training in found}.values())
