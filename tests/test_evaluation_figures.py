"""From records to figures: bootstrap, rows, headline, the search's choice and the report."""

import gzip
import json
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from evaluation.__main__ import main
from evaluation.bootstrap import Estimate, estimate
from evaluation.errors import EvaluationError
from evaluation.headline import headline
from evaluation.plan_file import read_plan, read_toml
from evaluation.records import Lines, pack, read_records
from evaluation.report import FEW_PICTURES, report_of
from evaluation.rows import rows
from evaluation.search import as_toml, best, marked

SEEDS, NOISE, PROMPTS = (0, 1, 2), (0, 1), ("a", "b")


def record(method: str, adapters: list[str], task: str, **more: Any) -> dict[str, Any]:
    """A record in which the judge sees all that was asked."""
    scores = {"concept": 1.0, "style": 1.0, "concept_p": 0.9, "style_p": 0.8}
    plain = {"recipe": method, "training_seed": 0, "strength": 1.0, "prompt": "a", "seed": 0}
    asked = {"concept": "robot", "style": "ink"}
    made = {"method": method, "adapters": adapters, "task": task, **plain, **asked, **more}
    made["scores"] = scores | more.get("scores", {})
    return {"key": json.dumps(made, sort_keys=True), **made}


def grid(method: str, adapters: list[str], task: str, **more: Any) -> Iterator[dict[str, Any]]:
    for training_seed, seed, prompt in product(SEEDS, NOISE, PROMPTS):
        place = {"training_seed": training_seed, "seed": seed, "prompt": prompt}
        yield record(method, adapters, task, **place, **more)


def experiment(method: str, joint_concept: float = 0.5) -> list[dict[str, Any]]:
    """Alone all is seen; together a share of the concepts, by prompt and noise, and all styles."""
    joint = [
        one | {"scores": one["scores"] | {"concept": float(place % 4 < 4 * joint_concept)}}
        for place, one in enumerate(grid(method, ["ink", "robot"], "joint"))
    ]
    return [
        *grid(method, ["ink"], "own", concept="dog"),
        *grid(method, ["robot"], "own", style="noto"),
        *grid(method, ["robot"], "unrelated", concept="cat", style="flat"),
        *joint,
    ]


def test_a_constant_has_no_interval() -> None:
    found = estimate(list(grid("m", ["x"], "own")), lambda one: 0.25)
    assert found is not None
    assert (found.value, found.low, found.high) == (0.25, 0.25, 0.25)


@pytest.mark.filterwarnings("error")
def test_a_ratio_over_what_was_hardly_seen_has_no_upper_end() -> None:
    alone = Estimate(0.25, np.repeat([0.0, 0.5], [30, 70]))
    kept = Estimate(1.0, np.ones(100)) / alone
    assert (kept.value, kept.low, kept.high) == (4.0, 2.0, np.inf)
    few = Estimate(1.0, np.ones(100)) / Estimate(0.25, np.repeat([0.0, 0.5], [3, 97]))
    assert (few.low, few.high) == (2.0, np.inf)


def test_nothing_to_read_is_no_figure() -> None:
    assert estimate(list(grid("m", ["x"], "own")), lambda one: None) is None
    assert estimate([], lambda one: 1.0) is None


@pytest.mark.parametrize("column", ["training_seed", "seed", "prompt"])
def test_one_source_of_variance_gives_its_plain_bootstrap(column: str) -> None:
    """A value that depends on one column alone spreads as the mean of that column's values does."""
    values = {column: np.linspace(0, 1, 7) ** 2}
    records = [
        record("m", ["x"], "own", **{column: label if column != "prompt" else str(label)})
        for label in range(7)
    ]
    found = estimate(records, lambda one: float(values[column][int(one[column])]))
    assert found is not None
    assert found.value == pytest.approx(values[column].mean())
    assert found.draws.std() == pytest.approx(values[column].std() / 7**0.5, rel=0.05)
    assert found.draws.mean() == pytest.approx(found.value, abs=0.01)


def test_nested_sources_spread_as_the_slow_way_does() -> None:
    """Against a loop that draws training seeds, in each prompts, in each noise, pair by pair."""
    rng = np.random.default_rng(0)
    pairs = ("ink", "comic")
    table = {place: rng.random() for place in product(pairs, range(3), range(4), range(2))}
    records = [
        record("m", [pair], "own", training_seed=t, seed=s, prompt=str(p))
        for pair, t, s, p in table
    ]

    def read(one: Any) -> float:
        return table[one["adapters"][0], one["training_seed"], one["seed"], int(one["prompt"])]

    def slow() -> float:
        return float(
            np.mean(
                [
                    table[pair, t, s, p]
                    for t in rng.integers(3, size=3)
                    for pair in pairs
                    for p in rng.integers(2, size=2)
                    for s in rng.integers(4, size=4)
                ]
            )
        )

    found = estimate(records, read)
    assert found is not None
    expected = [slow() for _ in range(4000)]
    assert found.draws.std() == pytest.approx(np.std(expected), rel=0.06)
    for share in (2.5, 50, 97.5):
        place = np.percentile(expected, share)
        assert np.percentile(found.draws, share) == pytest.approx(place, abs=0.015)


def test_prompts_with_fewer_pictures_count_as_prompts() -> None:
    records = [record("m", ["x"], "own", prompt="a", seed=seed) for seed in range(3)]
    records.append(record("m", ["x"], "own", prompt="b"))
    found = estimate(records, lambda one: float(one["prompt"] == "b"))
    assert found is not None
    assert found.draws.mean() == pytest.approx(0.5, abs=0.03)


def test_methods_asked_the_same_are_paired() -> None:
    (one,), (other,) = rows(experiment("a")), rows(experiment("b")[::-1])
    difference = one.figures["kept"] - other.figures["kept"]
    assert difference.draws.tolist() == [0.0] * len(difference.draws)


def test_a_row_has_the_figures_by_hand() -> None:
    (row,) = rows(experiment("m"))
    assert (row.method, row.strength, row.active, row.pictures) == ("m", 1.0, 2, 12)
    values = {name: figure.value for name, figure in row.figures.items()}
    expected = {
        "single": 1.0,
        "single_style": 1.0,
        "single_concept": 1.0,
        "joint": 0.75,
        "joint_style": 1.0,
        "joint_concept": 0.5,
        "kept": 0.75,
        "loss": 0.25,
        "both": 0.5,
        "unrelated": 1.0,
    }
    assert values == pytest.approx(expected)
    assert row.figures["kept"].low < 0.75 < row.figures["kept"].high


def test_bystanders_are_not_read() -> None:
    joint = list(grid("m", ["ink", "robot", "rocket"], "joint"))
    (row,) = rows([*experiment("m")[:36], *joint])
    assert row.active == 3
    assert row.figures["joint"].value == 1.0


def test_the_headline_is_as_the_issue_wants_it() -> None:
    found = headline([*experiment("shira", 1.0), *experiment("lora", 0.25)])
    assert found == {
        "shira": {"kept": 1.0, "kept_low": 1.0, "kept_high": 1.0, "single": 1.0},
        "lora": found["lora"],
        "pairs": 1,
        "seeds": 3,
    }
    assert found["lora"]["kept"] == 0.625
    assert found["lora"]["kept_low"] < 0.625 < found["lora"]["kept_high"]


def test_a_headline_without_a_method_says_so() -> None:
    with pytest.raises(EvaluationError, match="lora"):
        headline(experiment("shira"))


def test_records_of_several_files_count_once(tmp_path: Path) -> None:
    one, other = experiment("a"), experiment("b")
    Lines(tmp_path / "one.jsonl").append(one)
    Lines(tmp_path / "other.jsonl").append([*one[:5], *other])
    pack(tmp_path / "packed.jsonl.gz", other)
    names = ("one.jsonl", "other.jsonl", "packed.jsonl.gz")
    assert read_records([tmp_path / name for name in names]) == [*one, *other]
    first = (tmp_path / "packed.jsonl.gz").read_bytes()
    pack(tmp_path / "packed.jsonl.gz", other)
    assert (tmp_path / "packed.jsonl.gz").read_bytes() == first
    assert gzip.decompress(first).count(b"\n") == len(other)


def test_a_torn_line_is_closed_off_and_passed_over(tmp_path: Path) -> None:
    file = Lines(tmp_path / "records.jsonl")
    file.path.write_text('{"key": "a"}\n{"key": "b')
    file.append([{"key": "c"}])
    assert list(file.read()) == [{"key": "a"}, {"key": "c"}]
    with pytest.raises(EvaluationError, match="run the plan"):
        read_records([tmp_path / "other.jsonl"])


def trial(method: str, concept_p: float, unrelated: float) -> list[dict[str, Any]]:
    plain = {"concept_p": unrelated, "style_p": unrelated}
    return [
        record(method, ["crown"], "own", scores={"concept_p": concept_p}),
        record(method, ["openmoji"], "own", scores={"style_p": 1 - concept_p}),
        *(record(method, [name], "unrelated", scores=plain) for name in ("crown", "openmoji")),
    ]


def test_the_search_takes_the_best_of_each_kind(tmp_path: Path) -> None:
    plan = read_plan("tune")
    records = [
        one
        for recipe in plan.recipes.values()
        for one in trial(recipe.name, 0.5 + recipe.trial["lr"], 0.9)
    ]
    chosen = best(marked(plan, records))
    (tmp_path / "chosen.toml").write_text(as_toml(chosen))
    found = read_toml(tmp_path / "chosen.toml")
    # Of equal trials that of fewer steps.
    assert found["shira"] == {
        "concept": {"lr": 2e-2, "steps": 240},
        "style": {"lr": 2.5e-3, "steps": 240},
    }
    assert set(found) == {"shira", "lora", "lora-r16"}
    assert read_plan("headline", tmp_path / "chosen.toml").recipes["lora"].concept["lr"] == 1e-2


def test_a_search_that_is_not_finished_chooses_nothing() -> None:
    plan = read_plan("tune")
    records = [one for name in list(plan.recipes)[:-1] for one in trial(name, 0.5, 0.5)]
    with pytest.raises(EvaluationError, match="1 of 24 trials"):
        marked(plan, records)
    assert len(marked(plan, records, failed=[list(plan.recipes)[-1]])) == 2 * 23


def test_runs_with_different_settings_are_not_mixed() -> None:
    records = experiment("m")
    with pytest.raises(EvaluationError, match="--out"):
        rows([*records, records[0] | {"key": "other"}])


def test_the_report_works_from_disk(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    records = [
        one | {"key": f"k{place}"}
        for place, one in enumerate([*experiment("shira", 1.0), *experiment("lora")])
    ]
    Lines(run / "records.jsonl").append(records)
    line = {"bytes": 1000, "seconds": 3.0, "subject": "robot", "seed": 0}
    Lines(run / "adapters.jsonl").append(
        [
            line | {"recipe": name, "name": name, "values": n}
            for name, n in (("shira", 5), ("lora", 7))
        ]
    )
    (run / "pictures").mkdir()
    for one in records[::12]:
        Image.new("RGB", (8, 8)).save(run / "pictures" / f"{one['key']}.webp")
    assert (
        main(["report", str(run), "--json", str(tmp_path / "h.json"), "--pack", str(tmp_path)]) == 0
    )
    assert json.loads((tmp_path / "h.json").read_text())["seeds"] == 3
    assert read_records([tmp_path / "records.jsonl.gz"]) == records
    page = (run / "report" / "index.html").read_text()
    assert "http" not in page
    assert len(records) >= FEW_PICTURES
    assert "nothing about the methods" not in page
    for name in (
        "kept.png",
        "values.png",
        *(f"pictures/{one['key']}.webp" for one in records[::12]),
    ):
        assert name in page
        assert (run / "report" / name).is_file()
    Lines(tmp_path / "smoke" / "records.jsonl").append(records[: FEW_PICTURES - 1])
    smoke = report_of([tmp_path / "smoke"], tmp_path / "smoke" / "report").read_text()
    assert "nothing about the methods" in smoke
    table = (run / "report" / "table.md").read_text()
    assert "| shira | 1 | 2 | 1.000 (1.000 to 1.000) |" in table
