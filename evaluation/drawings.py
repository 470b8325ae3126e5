"""Which pictures a plan asks for: every drawing is one mix of adapters and what it is asked."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from emoji_xl.captions import with_article
from evaluation.plan import CONCEPT, Method, Plan, Sampling, Subject, digest
from evaluation.trainings import Training, training_of

OWN, SAME, JOINT, UNRELATED = "own", "same", "joint", "unrelated"
"""A subject alone on its own prompts; alone on a pair's prompts; together; on other prompts."""
BASE = "base"
"""The method without adapters."""


@dataclass(frozen=True)
class Ask:
    """One prompt, why it is asked, and which concept and style should be seen in the picture."""

    task: str
    prompt: str
    concept: str
    style: str


@dataclass(frozen=True)
class Drawing:
    """All that is asked of one mix, at one strength: what a worker does at a time."""

    method: Method
    training_seed: int
    trainings: tuple[Training, ...]
    strength: float
    asks: tuple[Ask, ...]
    sampling: Sampling
    base: str
    judges: tuple[str, ...]

    @property
    def adapters(self) -> tuple[str, ...]:
        """The names of the subjects whose adapters are active."""
        return tuple(training.subject.name for training in self.trainings)

    @cached_property
    def _mix(self) -> str:
        return digest(
            {
                "base": self.base,
                "trainings": [training.name for training in self.trainings],
                "merge": [self.method.merge.rule, dict(self.method.merge.numbers)],
                "strength": self.strength,
                "sampling": [self.sampling.steps, self.sampling.guidance],
                "method": self.method.name,
            }
        )

    def key(self, ask: Ask, seed: int) -> str:
        """Name one picture; it changes with anything that the picture or its scores depend on."""
        return digest([self._mix, asdict(ask), seed, self.judges])

    def every_key(self) -> Iterator[str]:
        """Every picture's key."""
        return (self.key(ask, seed) for ask in self.asks for seed in self.sampling.seeds)

    def record(self, ask: Ask, seed: int, scores: dict[str, float]) -> dict[str, Any]:
        """Return the line about one picture."""
        return {
            "key": self.key(ask, seed),
            "method": self.method.name,
            "recipe": self.method.recipe,
            "training_seed": self.training_seed,
            "adapters": list(self.adapters),
            "strength": self.strength,
            **asdict(ask),
            "seed": seed,
            "scores": scores,
        }


def all_drawings(plan: Plan) -> list[Drawing]:
    """Return every drawing of the plan, one training seed after another, the base first."""
    return [*_base(plan), *(d for seed in plan.training_seeds for d in _of_seed(plan, seed))]


def _of_seed(plan: Plan, seed: int) -> Iterator[Drawing]:
    for name in plan.used_recipes:
        # One adapter alone is the same for all methods that differ only in how they merge.
        method = Method(name, name)
        for strength in plan.questions.strengths:
            for subject in plan.subjects:
                asks = _alone(plan, subject)
                yield _drawing(plan, method, seed, [subject], strength, asks)
    for method in plan.methods:
        for strength in plan.questions.strengths:
            for size in plan.questions.sizes:
                for mix in mixes(plan, size):
                    asks = _together(plan, *mix[:2])
                    yield _drawing(plan, method, seed, mix, strength, asks)


def mixes(plan: Plan, size: int) -> list[tuple[Subject, ...]]:
    """Return every style with every concept, and the next concepts in turn as bystanders."""
    concepts = plan.concepts
    return [
        (style, *(concepts[(place + offset) % len(concepts)] for offset in range(size - 1)))
        for style in plan.styles
        for place in range(len(concepts))
    ]


def _base(plan: Plan) -> list[Drawing]:
    pairs = [ask for pair in mixes(plan, 2) for ask in _together(plan, *pair)]
    asks = [*_unrelated(plan), *pairs]
    return [_drawing(plan, Method(BASE, ""), 0, (), 1.0, asks)] if asks else []


def _drawing(
    plan: Plan,
    method: Method,
    seed: int,
    mix: Sequence[Subject],
    strength: float,
    asks: Sequence[Ask],
) -> Drawing:
    return Drawing(
        method,
        seed,
        tuple(training_of(plan, plan.recipes[method.recipe], subject, seed) for subject in mix),
        strength,
        tuple(asks),
        plan.sampling,
        plan.base,
        plan.judges,
    )


def _alone(plan: Plan, subject: Subject) -> list[Ask]:
    """Ask one subject for its own prompts, for those of its pairs, and for unrelated ones."""
    questions = plan.questions
    if subject.kind == CONCEPT:
        own = [(subject.word, style, subject.name, style) for style in questions.styles]
        pairs = [(style, subject) for style in plan.styles]
    else:
        own = [(thing, subject.word, thing, subject.name) for thing in questions.things]
        pairs = [(subject, concept) for concept in plan.concepts]
    asks = [
        Ask(OWN, filled(template, concept_word, style_word), concept, style)
        for concept_word, style_word, concept, style in own
        for template in questions.templates
    ]
    asks += [
        Ask(SAME, ask.prompt, ask.concept, ask.style)
        for style, concept in pairs
        for ask in _together(plan, style, concept)
    ]
    return asks + _unrelated(plan)


def _together(plan: Plan, style: Subject, concept: Subject) -> list[Ask]:
    return [
        Ask(JOINT, filled(template, concept.word, style.word), concept.name, style.name)
        for template in plan.questions.templates
    ]


def _unrelated(plan: Plan) -> list[Ask]:
    template = plan.questions.templates[0]
    return [
        Ask(UNRELATED, filled(template, concept, style), concept, style)
        for concept, style in plan.questions.unrelated
    ]


def filled(template: str, concept: str, style: str) -> str:
    """Put concept and style into a template."""
    return template.format(concept=concept, a_concept=with_article(concept), style=style)
