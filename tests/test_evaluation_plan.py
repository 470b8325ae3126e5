"""Plans: what they ask for, what makes a picture another one, and every fault at once."""

from pathlib import Path

import pytest
from evaluation_toys import write_plan

from emoji_xl.artwork import read_manifest
from emoji_xl.concepts import GROUP_A, GROUP_B, RESERVED_STYLES
from emoji_xl.stages import MANIFEST
from evaluation.drawings import JOINT, OWN, SAME, UNRELATED, all_drawings
from evaluation.errors import EvaluationError, PlanError
from evaluation.folders import pictures_of
from evaluation.plan import CONCEPT, STYLE, Subject
from evaluation.plan_file import PLANS, read_plan
from evaluation.trainings import all_trainings

SHIPPED = sorted(file.stem for file in PLANS.glob("*.toml"))


@pytest.mark.parametrize("name", SHIPPED)
def test_plans_that_ship_are_valid_and_touch_nothing_reserved(name: str) -> None:
    plan = read_plan(name)
    artwork = read_manifest(MANIFEST)
    learned = [
        picture
        for subject in plan.subjects
        if subject.data.startswith("artwork")
        for picture in pictures_of(subject, artwork)
    ]
    for picture in learned:
        assert picture.split in ("style", "concept")
        assert picture.style not in RESERVED_STYLES
        assert picture.concept not in GROUP_B
    asked = {ask.concept for drawing in all_drawings(plan) for ask in drawing.asks}
    assert not asked & set(GROUP_B)
    for subject in plan.concepts:
        assert subject.name in GROUP_A


def test_the_search_and_the_headline_share_no_picture_that_is_learned() -> None:
    artwork = read_manifest(MANIFEST)
    learned = {
        name: {
            p.file for subject in read_plan(name).subjects for p in pictures_of(subject, artwork)
        }
        for name in ("tune", "headline")
    }
    assert not learned["tune"] & learned["headline"]
    assert len(learned["headline"]) > 100


def test_the_headline_has_three_styles_eight_concepts_and_three_training_seeds() -> None:
    plan = read_plan("headline")
    joint = [d for d in all_drawings(plan) if len(d.adapters) == 2 and d.method.name == "shira"]
    assert len({d.adapters for d in joint}) == 24
    assert {d.training_seed for d in joint} == {0, 1, 2}
    assert len(all_trainings(plan)) == 11 * 3 * len(plan.recipes)


def test_reserved_artwork_is_refused() -> None:
    artwork = read_manifest(MANIFEST)
    for name, kind in ((GROUP_B[0], CONCEPT), ("streamline", STYLE)):
        with pytest.raises(EvaluationError, match="reserved"):
            pictures_of(Subject(name, kind, name), artwork)


def test_a_style_can_be_learned_from_other_pictures() -> None:
    artwork = read_manifest(MANIFEST)
    first = pictures_of(Subject("openmoji", STYLE, "comic"), artwork)
    rest = pictures_of(Subject("openmoji", STYLE, "comic", "artwork/rest"), artwork)
    assert len(first) == len(rest) == 28
    assert not {p.file for p in first} & {p.file for p in rest}


def test_what_is_asked_alone_and_together(tmp_path: Path) -> None:
    plan = read_plan(write_plan(tmp_path, tmp_path))
    by_mix = {
        d.adapters: {(ask.task, ask.prompt, ask.concept, ask.style) for ask in d.asks}
        for d in all_drawings(plan)
        if d.method.name == "shira"
    }
    pair = ("robot, ink style", "robot", "high-contrast")
    unrelated = (UNRELATED, "house, fluent style", "house", "fluent")
    assert by_mix == {
        ("high-contrast",): {
            (OWN, "dog, ink style", "dog", "high-contrast"),
            (SAME, *pair),
            unrelated,
        },
        ("robot",): {(OWN, "robot, noto style", "robot", "noto"), (SAME, *pair), unrelated},
        ("high-contrast", "robot"): {(JOINT, *pair)},
    }


def test_more_adapters_are_bystanders_in_turn() -> None:
    plan = read_plan("crowds")
    fives = [d for d in all_drawings(plan) if len(d.adapters) == 5]
    assert len({d.adapters for d in fives}) == 24
    for drawing in fives:
        assert len(set(drawing.adapters)) == 5
        assert {ask.concept for ask in drawing.asks} == {drawing.adapters[1]}


def test_a_method_that_only_merges_asks_for_no_adapter_alone_twice(tmp_path: Path) -> None:
    more = (
        '[[methods]]\nname = "shira"\n'
        '[[methods]]\nname = "ties"\nrecipe = "shira"\nrule = "ties"\nkeep = 0.5\n'
    )
    drawings = all_drawings(read_plan(write_plan(tmp_path, tmp_path, more)))
    names = [key for drawing in drawings for key in drawing.every_key()]
    assert len(names) == len(set(names))
    assert {d.method.name for d in drawings if len(d.adapters) == 1} == {"shira"}
    assert {d.method.name for d in drawings if len(d.adapters) == 2} == {"shira", "ties"}


def keys(file: Path) -> set[str]:
    """The names of all pictures with adapters."""
    return {key for d in all_drawings(read_plan(file)) if d.adapters for key in d.every_key()}


@pytest.mark.parametrize(
    ("old", "new"),
    [("steps = 2\nseeds", "steps = 3\nseeds"), ("[questions]", "guidance = 4.0\n[questions]")],
)
def test_other_sampling_makes_every_picture_another_one(tmp_path: Path, old: str, new: str) -> None:
    file = write_plan(tmp_path, tmp_path)
    before = keys(file)
    file.write_text(file.read_text().replace(old, new))
    assert not before & keys(file)


def test_another_recipe_makes_its_own_pictures_others_and_no_more(tmp_path: Path) -> None:
    file = write_plan(tmp_path, tmp_path)
    before = keys(file)
    file.write_text(file.read_text().replace("density = 0.1", "density = 0.2"))
    assert len(before & keys(file)) == len(before) // 2


def test_other_images_make_pictures_with_their_adapter_others(tmp_path: Path) -> None:
    file = write_plan(tmp_path, tmp_path)
    style_alone = {
        key
        for drawing in all_drawings(read_plan(file))
        if drawing.adapters == ("high-contrast",)
        for key in drawing.every_key()
    }
    before = keys(file)
    file.write_text(file.read_text().replace("/robot", "/others"))
    assert before & keys(file) == style_alone


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ('new_token = "<ink>"', "[recipes.new] for a style: new_token = <ink>: a new word's"),
        ("lerning = 1.0", "[recipes.new] for a concept: lerning=1.0: there is no setting lerning"),
        ('concept = { steps = "no" }', "[recipes.new] for a concept: steps=no: steps = "),
    ],
)
def test_what_the_trainer_would_refuse_is_refused_at_once(
    tmp_path: Path, settings: str, fault: str
) -> None:
    file = write_plan(tmp_path, tmp_path, f'[recipes.new]\nmethod = "shira"\n{settings}\n')
    with pytest.raises(PlanError) as caught:
        read_plan(file)
    assert fault in str(caught.value)


def test_what_an_adapter_is_called_changes_with_what_shapes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def names() -> set[str]:
        return {training.name for training in all_trainings(read_plan(file))}

    file = write_plan(tmp_path, tmp_path)
    found = [names(), names()]
    assert found[0] == found[1]
    preset = tmp_path / "preset.toml"
    preset.write_text(preset.read_text() + "[lora]\nrank = 3\n")
    found.append(names())
    monkeypatch.setattr("evaluation.trainings.NUMBERS", 99)
    found.append(names())
    assert found[1].isdisjoint(found[2])
    assert found[2].isdisjoint(found[3])


def test_a_preset_with_a_new_word_is_refused(tmp_path: Path) -> None:
    file = write_plan(tmp_path, tmp_path)
    (tmp_path / "preset.toml").write_text('new_token = "<ink>"\n')
    with pytest.raises(PlanError, match="new_token = <ink>"):
        read_plan(file)


def test_all_faults_are_reported_together(tmp_path: Path) -> None:
    file = write_plan(
        tmp_path,
        tmp_path,
        '[[methods]]\nname = "a"\nrecipe = "shiro"\n[[methods]]\nname = "b"\nrecipe = "lora"\n'
        'rule = "ties"\n[recipes.c]\nlike = "d"\n[search.shira]\nlr = [1.0]\n'
        "[search.lora]\nlr = [1.0, 2.0]\n",
    )
    file.write_text(
        file.read_text()
        .replace("batch = 3", "batches = 3")
        .replace('things = ["dog"]', "sizes = [4]")
        .replace('name = "toy"', 'name = "toy"\njudges = ["judy"]')
    )
    with pytest.raises(PlanError) as caught:
        read_plan(file)
    faults = ("batches", "things is missing", "shiro", "ties needs", "like 'd'", "judy", "as many")
    for words in faults:
        assert words in str(caught.value)


def test_tables_that_are_none_are_faults(tmp_path: Path) -> None:
    file = write_plan(tmp_path, tmp_path, "[search.shira]\nlr = 1.0\n[search.lora]\n")
    file.write_text("search.x = 3\nmethods = 1\n" + file.read_text())
    with pytest.raises(PlanError) as caught:
        read_plan(file)
    for words in (
        "x is not a table",
        "methods are no",
        "[search.shira]: every setting",
        "lora]: every",
    ):
        assert words in str(caught.value)


def test_a_plan_that_is_not_there_names_those_that_are() -> None:
    with pytest.raises(PlanError, match="headline"):
        read_plan("headlines")


def test_chosen_settings_win_for_their_kind(tmp_path: Path) -> None:
    chosen = tmp_path / "chosen.toml"
    chosen.write_text("[shira.style]\nlr = 0.5\nsteps = 7\n")
    plan = read_plan("recipes", chosen)
    for name in ("shira", "shira-wm"):
        assert plan.recipes[name].settings(STYLE)["lr"] == 0.5
        assert "lr" not in plan.recipes[name].settings(CONCEPT)
    chosen.write_text("[nobody.style]\nlr = 0.5\n")
    with pytest.raises(PlanError, match="nobody"):
        read_plan("recipes", chosen)


def test_disjoint_concepts_come_after_the_styles() -> None:
    disjoint = [t for t in all_trainings(read_plan("recipes")) if t.recipe.name == "shira-disjoint"]
    for training in disjoint:
        expected = 0 if training.subject.kind == STYLE else 3
        assert len(training.avoids) == expected


def test_a_recipe_wins_over_the_one_that_it_is_like(tmp_path: Path) -> None:
    more = (
        '[recipes.par]\nlike = "shira"\n[recipes.par.style]\nlr = 0.05\nsteps = 7\n'
        '[recipes.child]\nlike = "par"\nlr = 0.01\n'
    )
    settings = read_plan(write_plan(tmp_path, tmp_path, more)).recipes["child"].settings(STYLE)
    assert settings["lr"] == 0.01
    assert settings["steps"] == 7


def test_a_trial_is_its_recipe_but_for_what_is_tried(tmp_path: Path) -> None:
    more = (
        '[recipes.par]\nlike = "shira"\ntrainer = "peft-shira"\n[recipes.par.style]\nlr = 0.05\n'
        "batch = 1\n[search.par]\nlr = [0.5, 0.25]\n"
    )
    plan = read_plan(write_plan(tmp_path, tmp_path, more))
    trials = [recipe for recipe in plan.recipes.values() if recipe.trial_of == "par"]
    assert [one.settings(STYLE)["lr"] for one in trials] == [0.5, 0.25]
    for one in trials:
        assert one.trainer == "peft-shira"
        assert one.settings(STYLE)["batch"] == 1


def test_trials_come_in_turn_and_are_equally_many() -> None:
    plan = read_plan("tune")
    origins = [recipe.trial_of for recipe in plan.recipes.values()]
    assert origins == ["shira", "lora", "lora-r16"] * 8
