"""A plan: what is trained, how it is combined, what is asked for and who judges."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

STYLE, CONCEPT = "style", "concept"
KINDS = (STYLE, CONCEPT)
Settings = Mapping[str, Any]
"""Settings of the trainer, as in its presets."""


@dataclass(frozen=True)
class Subject:
    """A style or a concept that adapters learn.

    `name` is what the judge calls it and `word` what prompts do. `data` is a folder of captioned
    images, or `artwork`: the same pictures as the examples have, cut from emoji_xl's pack; of
    `artwork/rest` a style gets other pictures than those.
    """

    name: str
    kind: str
    word: str
    data: str = "artwork"


@dataclass(frozen=True)
class Recipe:
    """How an adapter is trained: settings for all, and those of styles and of concepts.

    With `disjoint` the concepts' adapters leave alone the entries of all styles' adapters.
    `trainer` is `training`, our own, or `peft-shira`. A trial knows what it is a `trial_of`.
    """

    name: str
    common: Settings
    style: Settings = field(default_factory=dict)
    concept: Settings = field(default_factory=dict)
    disjoint: bool = False
    trainer: str = "training"
    trial_of: str = ""
    trial: Settings = field(default_factory=dict)

    def settings(self, kind: str) -> dict[str, Any]:
        """Return the settings for an adapter of a style or of a concept."""
        return {**self.common, **(self.style if kind == STYLE else self.concept)}


@dataclass(frozen=True)
class Merge:
    """The rule by which several adapters act at once, and its numbers; see `evaluation.merging`."""

    rule: str = "sum"
    numbers: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Method:
    """A row of the result: adapters of a recipe, combined by a rule."""

    name: str
    recipe: str
    merge: Merge = field(default_factory=Merge)


@dataclass(frozen=True)
class Sampling:
    """How pictures are drawn; every prompt with every one of `seeds`."""

    steps: int = 22
    guidance: float = 3.0
    seeds: tuple[int, ...] = (0, 1, 2, 3)
    batch: int = 96


@dataclass(frozen=True)
class Questions:
    """What is asked for.

    A style alone is asked to draw `things` that the base knows, a concept alone to be drawn in
    `styles` that it knows; together they are asked for one another. `templates` are filled with
    `{concept}` or `{a_concept}`, and `{style}`. `unrelated` are (concept, style) pairs of the base
    that no adapter should change. `sizes` say how many adapters are active at once, `strengths`
    how strong.
    """

    things: tuple[str, ...]
    styles: tuple[str, ...]
    templates: tuple[str, ...] = ("{concept}, {style} style",)
    unrelated: tuple[tuple[str, str], ...] = ()
    sizes: tuple[int, ...] = (2,)
    strengths: tuple[float, ...] = (1.0,)


@dataclass(frozen=True)
class Plan:
    """All of an evaluation; `presets` are the trainer's, by kind."""

    name: str
    base: str
    judges: tuple[str, ...]
    presets: Mapping[str, str]
    training_seeds: tuple[int, ...]
    subjects: tuple[Subject, ...]
    recipes: Mapping[str, Recipe]
    methods: tuple[Method, ...]
    sampling: Sampling
    questions: Questions

    @property
    def styles(self) -> tuple[Subject, ...]:
        """The styles that adapters learn."""
        return tuple(subject for subject in self.subjects if subject.kind == STYLE)

    @property
    def concepts(self) -> tuple[Subject, ...]:
        """The concepts that adapters learn."""
        return tuple(subject for subject in self.subjects if subject.kind == CONCEPT)

    @property
    def used_recipes(self) -> tuple[str, ...]:
        """The recipes of the methods, in their order."""
        return tuple(dict.fromkeys(method.recipe for method in self.methods))


def digest(content: object) -> str:
    """Name JSON-like content by the first 12 digits of its sha256."""
    text = json.dumps(content, sort_keys=True, default=list)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
