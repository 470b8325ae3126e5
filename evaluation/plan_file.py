"""Reads a plan from TOML; all that is wrong with it is reported together."""

import dataclasses
import itertools
import tomllib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluation.errors import PlanError
from evaluation.judges import JUDGES
from evaluation.merging import NUMBERS
from evaluation.plan import (
    CONCEPT,
    STYLE,
    Merge,
    Method,
    Plan,
    Questions,
    Recipe,
    Sampling,
    Subject,
)
from evaluation.training_run import CREATE, faults_of
from evaluation.typed import build
from shira_diffusion.errors import nearest

PLANS = Path(__file__).parent / "plans"


@dataclass(frozen=True)
class _Head:
    """The top level of a plan's file, less its tables of subjects, recipes and methods."""

    name: str
    presets: Mapping[str, str]
    sampling: Mapping[str, Any]
    questions: Mapping[str, Any]
    base: str = "models/emoji-xl"
    judges: tuple[str, ...] = ("emoji",)
    training_seeds: tuple[int, ...] = (0,)


@dataclass(frozen=True)
class _Named:
    """A `[[styles]]` or `[[concepts]]` table."""

    name: str
    word: str = ""
    data: str = "artwork"


def read_plan(source: str | Path, chosen: Path | None = None) -> Plan:
    """Read a plan (a file, or the name of one of ours), with settings that a search has chosen.

    Raises `PlanError` with every fault.
    """
    path = find_plan(source)
    table = _with_parent(path)
    faults: list[str] = []
    parts = {name: table.pop(name, []) for name in ("styles", "concepts", "methods")}
    named = {name: _tables(table.pop(name, {}), name, faults) for name in ("recipes", "search")}
    head = build(_Head, table, str(path), faults)
    subjects = [
        *_subjects(STYLE, parts["styles"], faults),
        *_subjects(CONCEPT, parts["concepts"], faults),
    ]
    recipes = _recipes(named["recipes"], read_toml(chosen) if chosen else {}, faults)
    recipes = _trials(recipes, named["search"], faults)
    methods = _methods(parts["methods"], recipes, faults)
    sampling = build(Sampling, head.sampling, "[sampling]", faults) if head else None
    questions = build(Questions, head.questions, "[questions]", faults) if head else None
    if head:
        faults += _of_head(head)
        faults += _of_settings(head, recipes)
    if head and sampling and questions:
        faults += _together(head, subjects, sampling, questions)
    if faults or head is None or sampling is None or questions is None:
        raise PlanError("\n".join(["The plan has faults:", *(f"  - {one}" for one in faults)]))
    return Plan(
        head.name,
        head.base,
        head.judges,
        head.presets,
        head.training_seeds,
        tuple(subjects),
        recipes,
        tuple(methods),
        sampling,
        questions,
    )


def _with_parent(path: Path) -> dict[str, Any]:
    """Return a plan's file, with what the plan that it is `like` has and it has not."""
    table = read_toml(path)
    if "like" not in table:
        return table
    parent = _with_parent(find_plan(table.pop("like")))
    for key, value in table.items():
        both = isinstance(value, dict) and isinstance(parent.get(key), dict)
        parent[key] = {**parent[key], **value} if both else value
    return parent


def find_plan(source: str | Path) -> Path:
    """Return the file of a plan given as a path or as the name of one that ships."""
    path = Path(source)
    shipped = PLANS / f"{path.name.removesuffix('.toml')}.toml"
    if path.is_file():
        return path
    if len(path.parts) == 1 and shipped.is_file():
        return shipped
    names = sorted(file.stem for file in PLANS.glob("*.toml"))
    raise PlanError(f"There is no plan {str(source)!r}; {nearest(path.stem, names, most=9)}.")


def read_toml(path: Path) -> dict[str, Any]:
    """Return a TOML file's content; raises `PlanError` if it is none."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise PlanError(f"There is no file {path}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise PlanError(f"{path} is not valid TOML: {error}.") from error


def _subjects(kind: str, tables: Any, faults: list[str]) -> list[Subject]:
    found = []
    for number, table in enumerate(_list(tables, f"{kind}s", faults), start=1):
        named = build(_Named, table, f"[[{kind}s]] {number}", faults)
        if named is not None:
            found.append(Subject(named.name, kind, named.word or named.name, named.data))
    return found


def _recipes(
    tables: Mapping[str, Mapping[str, Any]], chosen: Mapping[str, Any], faults: list[str]
) -> dict[str, Recipe]:
    """Read `[recipes.NAME]`: the trainer's settings, and what differs for styles and concepts."""
    recipes: dict[str, Recipe] = {}
    for name, table in tables.items():
        like = table.get("like")
        if like is not None and like not in recipes:
            faults.append(f"[recipes.{name}] is like {like!r}, which does not stand before it")
        recipes[name] = _recipe(name, table, recipes.get(str(like)), chosen.get(name, {}))
        trainer = recipes[name].trainer
        if trainer not in CREATE:
            faults.append(
                f"[recipes.{name}]: there is no trainer {trainer!r}, only {sorted(CREATE)}"
            )
    unknown = sorted(set(chosen) - set(tables))
    faults += [f"the chosen settings are for {name!r}, no recipe of this plan" for name in unknown]
    return recipes


def _recipe(
    name: str, table: Mapping[str, Any], like: Recipe | None, chosen: Mapping[str, Any]
) -> Recipe:
    """Make a recipe of a table on top of the one that it is like, of which the table wins.

    What was `chosen` for this very recipe wins over both.
    """
    common = {**(like.common if like else {}), **table}
    common.pop("like", None)
    kinds = {STYLE: like.style if like else {}, CONCEPT: like.concept if like else {}}
    own = {
        kind: {
            **{key: value for key, value in settings.items() if key not in table},
            **common.pop(kind, {}),
            **chosen.get(kind, {}),
        }
        for kind, settings in kinds.items()
    }
    disjoint, trainer = common.pop("disjoint", False), common.pop("trainer", "training")
    return Recipe(name, common, own[STYLE], own[CONCEPT], disjoint, trainer)


def _trials(
    recipes: dict[str, Recipe], search: Mapping[str, Any], faults: list[str]
) -> dict[str, Recipe]:
    """Put a recipe for each combination of the values in `[search.NAME]` in the recipe's place."""
    by_recipe: list[list[Recipe]] = []
    for name, axes in search.items():
        if name not in recipes:
            faults.append(f"[search.{name}]: there is no recipe {name!r}")
            continue
        if not axes or not all(isinstance(values, list) and values for values in axes.values()):
            faults.append(f"[search.{name}]: every setting needs a list of values to try")
            continue
        by_recipe.append(_of_search(recipes[name], axes))
    counts = {trials[0].trial_of: len(trials) for trials in by_recipe if trials}
    if len(set(counts.values())) > 1:
        faults.append(f"[search]: every recipe must have as many trials as the others: {counts}")
    found = {name: recipe for name, recipe in recipes.items() if name not in search}
    # In turn: should time run out, each recipe has had as many as the others.
    turns = itertools.zip_longest(*by_recipe)
    return found | {trial.name: trial for turn in turns for trial in turn if trial is not None}


def _of_search(recipe: Recipe, axes: Mapping[str, Any]) -> list[Recipe]:
    """Return a recipe for each combination of the axes' values."""
    trials = []
    for values in itertools.product(*axes.values()):
        trial = dict(zip(axes, values, strict=True))
        label = "-".join([recipe.name, *(f"{key}{value}" for key, value in trial.items())])
        trials.append(
            dataclasses.replace(
                recipe,
                name=label,
                common={**recipe.common, **trial},
                style={**recipe.style, **trial},
                concept={**recipe.concept, **trial},
                trial_of=recipe.name,
                trial=trial,
            )
        )
    return trials


def _methods(tables: Any, recipes: Mapping[str, Recipe], faults: list[str]) -> list[Method]:
    """Read `[[methods]]`; without any, each recipe is a method whose adapters are added."""
    listed = _list(tables, "methods", faults)
    methods = [] if listed else [Method(name, name) for name in recipes]
    for number, table in enumerate(listed, start=1):
        numbers = dict(table)
        name, rule = numbers.pop("name", f"number {number}"), numbers.pop("rule", "sum")
        recipe = numbers.pop("recipe", name)
        if recipe not in recipes:
            faults.append(f"[[methods]] {name}: no recipe {recipe!r}; {nearest(recipe, recipes)}")
        if rule not in NUMBERS:
            faults.append(f"[[methods]] {name}: no rule {rule!r}; {nearest(rule, NUMBERS, most=9)}")
        elif sorted(numbers) != sorted(NUMBERS[rule]):
            faults.append(f"[[methods]] {name}: {rule} needs {NUMBERS[rule]}, not {numbers}")
        methods.append(Method(name, recipe, Merge(rule, numbers)))
    faults += [
        f"{what} is there {count} times"
        for what, count in Counter(f"the method {method.name!r}" for method in methods).items()
        if count > 1
    ]
    return methods


def _of_head(head: _Head) -> list[str]:
    known = f"; {nearest('', JUDGES, most=len(JUDGES))}"
    faults = [f"there is no judge {name!r}{known}" for name in head.judges if name not in JUDGES]
    return faults + [
        f"[presets] lacks {kind!r}" for kind in (STYLE, CONCEPT) if kind not in head.presets
    ]


def _of_settings(head: _Head, recipes: Mapping[str, Recipe]) -> list[str]:
    """Ask the trainer what is wrong with the recipes' settings."""
    found = [
        f"[recipes.{name}] for a {kind}: {fault}"
        for name, recipe in recipes.items()
        for kind in (STYLE, CONCEPT)
        if kind in head.presets
        for fault in faults_of({**recipe.settings(kind), "base": head.base}, head.presets[kind])
    ]
    return list(dict.fromkeys(found))


def _together(
    head: _Head, subjects: list[Subject], sampling: Sampling, questions: Questions
) -> list[str]:
    """Say what is wrong with the plan as a whole."""
    concepts = sum(subject.kind == CONCEPT for subject in subjects)
    faults = [
        f"[questions] sizes: {size} adapters at once need {size - 1} concepts, there are {concepts}"
        for size in questions.sizes
        if not 2 <= size <= concepts + 1
    ]
    if concepts == len(subjects) and questions.sizes:
        faults.append("[[styles]] are missing: adapters are combined as a style and concepts")
    names = Counter(subject.name for subject in subjects)
    faults += [f"the subject {name!r} is there twice" for name, n in names.items() if n > 1]
    if not head.training_seeds or not sampling.seeds:
        faults.append("training_seeds and [sampling] seeds need at least one number")
    for template in questions.templates:
        try:
            template.format(concept="", a_concept="", style="")
        except (KeyError, IndexError, ValueError):
            faults.append(f"{template!r} holds more than {{concept}}, {{a_concept}}, {{style}}")
    return faults


def _tables(tables: Any, name: str, faults: list[str]) -> dict[str, Mapping[str, Any]]:
    """Return the tables below `name`, noting what is none."""
    found = tables if isinstance(tables, Mapping) else {"": tables}
    faults += [
        f"[{name}] {key} is not a table"
        for key, one in found.items()
        if not isinstance(one, Mapping)
    ]
    return {key: one for key, one in found.items() if isinstance(one, Mapping)}


def _list(tables: Any, name: str, faults: list[str]) -> list[Any]:
    if isinstance(tables, list) and all(isinstance(table, Mapping) for table in tables):
        return tables
    faults.append(f"{name} are no [[{name}]] tables")
    return []
