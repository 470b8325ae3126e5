"""`python -m evaluation choose`: of a search's trials, the settings that do an adapter's work best.

The measure knows nothing of how adapters go together: it is the mean of two means of the judge's
calibrated probabilities, that of what the adapter should bring on its own prompts, and that of
concept and style on unrelated prompts, which it should leave alone. Styles and concepts choose for
themselves, every recipe among the same number of trials.
"""

import argparse
import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from rich.console import Console
from rich.table import Table

from evaluation.drawings import OWN, UNRELATED
from evaluation.errors import EvaluationError
from evaluation.plan import KINDS, Plan, Recipe
from evaluation.plan_file import read_plan
from evaluation.records import Lines, found_in

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Trial:
    """What one trial of a recipe came to for styles or for concepts; all between 0 and 1."""

    origin: str
    kind: str
    settings: Mapping[str, Any]
    own: float
    unrelated: float
    pictures: int

    @property
    def score(self) -> float:
        """The measure by which trials are compared."""
        return (self.own + self.unrelated) / 2


def add_choose(parser: argparse.ArgumentParser) -> None:
    """Add what choosing takes."""
    parser.description = __doc__
    parser.add_argument("plan", help="the search's plan")
    parser.add_argument("runs", type=Path, nargs="+", help="folders of its runs")
    parser.add_argument("--out", type=Path, required=True, help="settings for --chosen, as TOML")


def run_choose(options: argparse.Namespace) -> int:
    """Print all trials, best first, and write down the best."""
    records, _ = found_in(options.runs)
    failures = [line for run in options.runs for line in Lines(run / "failures.jsonl").read()]
    trials = marked(read_plan(options.plan), records, [line["recipe"] for line in failures])
    table = Table("recipe", "kind", "settings", "own", "unrelated", "score", "pictures")
    for trial in trials:
        settings = ", ".join(f"{key} {value:g}" for key, value in trial.settings.items())
        figures = (f"{value:.4f}" for value in (trial.own, trial.unrelated, trial.score))
        table.add_row(trial.origin, trial.kind, settings, *figures, str(trial.pictures))
    Console(width=120).print(table)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(as_toml(best(trials)), encoding="utf-8")
    return 0


def marked(plan: Plan, records: Iterable[Record], failed: Collection[str] = ()) -> list[Trial]:
    """Mark every trial of the search, by recipe and kind, best first.

    Recipes must have had equally many: raises `EvaluationError` while trials that have not
    `failed` lack pictures.
    """
    kinds = {subject.name: subject.kind for subject in plan.subjects}
    by_trial: dict[tuple[str, str, str], list[float]] = {}
    for record in records:
        if len(record["adapters"]) == 1:
            kind = kinds.get(record["adapters"][0], "")
            place = record["method"], kind, record["task"]
            by_trial.setdefault(place, []).append(_probability(record, kind))
    every = [recipe for recipe in plan.recipes.values() if recipe.trial_of]
    trials = {
        (recipe.name, kind): _marked(recipe, kind, by_trial) for recipe in every for kind in KINDS
    }
    open_ = {name for (name, _), trial in trials.items() if trial is None} - set(failed)
    if open_ or not every:
        raise EvaluationError(
            f"{len(open_)} of {len(every)} trials have no pictures yet, {sorted(open_)[:3]} among "
            "them; finish the search first, or no two methods have had the same chance."
        )
    found = [trial for trial in trials.values() if trial is not None]
    return sorted(found, key=lambda trial: (trial.origin, trial.kind, -trial.score))


def best(trials: Iterable[Trial]) -> list[Trial]:
    """Return the first of every recipe and kind; of equal ones that with the smaller numbers."""
    found: dict[tuple[str, str], Trial] = {}
    for trial in trials:
        place = trial.origin, trial.kind
        former = found.get(place)
        rank = (-trial.score, tuple(trial.settings.values()))
        if former is None or rank < (-former.score, tuple(former.settings.values())):
            found[place] = trial
    return list(found.values())


def as_toml(chosen: Iterable[Trial]) -> str:
    """Write settings as the tables that a plan's recipes have."""
    tables = []
    for trial in chosen:
        lines = [f"{key} = {json.dumps(value)}" for key, value in trial.settings.items()]
        tables.append("\n".join([f"[{trial.origin}.{trial.kind}]", *lines]))
    return "\n\n".join(tables) + "\n"


def _marked(
    recipe: Recipe, kind: str, found: Mapping[tuple[str, str, str], list[float]]
) -> Trial | None:
    own = found.get((recipe.name, kind, OWN), [])
    unrelated = found.get((recipe.name, kind, UNRELATED), [])
    if not own or not unrelated:
        return None
    pictures = len(own) + len(unrelated)
    return Trial(recipe.trial_of, kind, recipe.trial, mean(own), mean(unrelated), pictures)


def _probability(record: Record, kind: str) -> float:
    scores = record["scores"]
    if record["task"] == OWN:
        return float(scores[f"{kind}_p"])
    return (float(scores["concept_p"]) + float(scores["style_p"])) / 2
