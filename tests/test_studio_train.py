"""Image sets and trainings: kept on disk, run by a process of their own, found again."""

import json
import os
import shutil
import time
import weakref
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from studio_toys import HOSTILE, open_toy

from shira_diffusion import Adapter
from shira_diffusion.errors import SettingError
from studio.library import AdapterLibrary
from studio.shelf.trash import TrashError
from studio.tabs import train_form, train_view
from studio.tabs.train_form import Presets
from studio.tabs.train_handlers import TrainHandlers
from studio.vocabulary import Vocabulary
from studio.workshop.captions import CONCEPT, STYLE, cleaned, from_file_name, with_trigger
from studio.workshop.estimate import estimate, read, strangers, time_taken
from studio.workshop.order import EXTRAS, Order, Places, command, read_extras
from studio.workshop.presets import METHODS, offered, read_presets
from studio.workshop.process import Process, read_process
from studio.workshop.progress import Logs, summary
from studio.workshop.room import Workshop, open_workshop
from studio.workshop.runs import State, Training, TrainingError, Trainings
from studio.workshop.sets import ImageSets, SetError
from training.config import FIELDS
from training.config import METHODS as TRAINERS_METHODS
from training.settings import load_config

RUN_SECONDS = 120
ORDER = Order(
    title="Bold ink", name="bold-ink", kind=STYLE, preset="quick", method="shira",
    trigger="ink style", steps=4, density=0.2, extras={"sample_steps": "2", "batch": "2"},
)  # fmt: skip


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Two pictures, one with captions, and files that are none."""
    folder = tmp_path / "dropped"
    folder.mkdir()
    for name, color in (("red_fox-01.png", "red"), ("IMG_0002.jpg", "teal")):
        Image.new("RGB", (40, 32), color).save(folder / name)
    (folder / "IMG_0002.txt").write_text("a  castle, ink style\n\na castle\n", encoding="utf-8")
    (folder / "CREDITS.md").write_text("Drawn by Ada, CC0.")
    return folder


@pytest.fixture
def sets(tmp_path: Path) -> ImageSets:
    return ImageSets(tmp_path / "outputs" / "sets")


@pytest.fixture
def filled(sets: ImageSets, pictures: Path) -> str:
    set_id = sets.create("Ink")
    assert sets.add(set_id, pictures.iterdir()) == []
    return set_id


def captions(sets: ImageSets, set_id: str) -> dict[str, str]:
    return {image.told: image.captions for image in sets.find(set_id).images}


# Captions


@pytest.mark.parametrize(
    ("before", "kind", "after"),
    [
        ("lion", STYLE, "lion, ink style"),
        ("lion,", STYLE, "lion, ink style"),
        ("", STYLE, "ink style"),
        ("a lion, Ink Style", STYLE, "a lion, Ink Style"),
        ("lion\n\na cat", STYLE, "lion, ink style\na cat, ink style"),
        ("noto style\nflat style", CONCEPT, "ink style, noto style\nink style, flat style"),
        ("pink styles", STYLE, "pink styles, ink style"),
    ],
)
def test_triggers_go_where_they_belong(before: str, kind: str, after: str) -> None:
    assert with_trigger(before, "ink style", kind) == after
    assert with_trigger(after, "ink style", kind) == after


@given(st.text(max_size=60), st.sampled_from([STYLE, CONCEPT]))
def test_captions_stay_single_lines(text: str, kind: str) -> None:
    told = with_trigger(text, "sks", kind)
    assert cleaned(told) == told
    assert all("sks" in line for line in told.split("\n"))


@pytest.mark.parametrize(
    ("name", "caption"),
    [
        ("red_fox-01.png", "red fox"),
        ("IMG_0002.jpg", ""),
        ("Screenshot 2026-11-25.png", ""),
        ("a3f9bc01.png", ""),
        ("Löwe.webp", "löwe"),
    ],
)
def test_first_captions_from_file_names(name: str, caption: str) -> None:
    assert from_file_name(name) == caption


# Image sets


def test_a_set_keeps_pictures_captions_and_credit(
    sets: ImageSets, filled: str, tmp_path: Path
) -> None:
    assert captions(sets, filled) == {
        "IMG_0002.jpg": "a castle, ink style\na castle",
        "red_fox-01.png": "red fox",
    }
    first = sets.find(filled).images[0]
    assert first.name == "0001.jpg"
    with Image.open(first.thumbnail) as thumbnail:
        assert thumbnail.size == (40, 32)
    sets.caption(filled, {"0001.jpg": " new \n", "../../x": "evil", "0009.png": "no"})
    assert captions(ImageSets(sets.folder), filled)["IMG_0002.jpg"] == "new"
    sets.copy_to(filled, tmp_path / "copy")
    assert sorted(path.name for path in (tmp_path / "copy").iterdir()) == [
        "0001.jpg", "0001.txt", "0002.png", "0002.txt", "CREDITS.md",
    ]  # fmt: skip
    assert (tmp_path / "copy" / "0001.txt").read_text() == "new"


def test_what_is_no_picture_stays_out_with_its_reason(
    sets: ImageSets, filled: str, pictures: Path, tmp_path: Path
) -> None:
    odd = tmp_path / "odd"
    odd.mkdir()
    (odd / f"{HOSTILE[:20].replace('/', '')}.png").write_bytes(b"<svg onload=alert(1)>")
    Image.new("1", (9000, 9000)).save(odd / "vast.png")
    (odd / "copy.png").write_bytes((pictures / "red_fox-01.png").read_bytes())
    remarks = " ".join(sets.add(filled, odd.iterdir()))
    for part in ("not a picture", "million pixels", "in the set already"):
        assert part in remarks
    assert len(sets.find(filled).images) == 2


def test_pictures_without_captions_are_told_by_the_names_that_people_know(
    sets: ImageSets, filled: str
) -> None:
    assert sets.find(filled).fault == ""
    sets.caption(filled, {"0001.jpg": ""})
    assert sets.find(filled).fault.startswith("Write what “IMG_0002.jpg” shows:")
    sets.caption(filled, {"0002.png": ""})
    assert "“IMG_0002.jpg”, “red_fox-01.png” show:" in sets.find(filled).fault


def test_a_trainings_own_pictures_are_found_again_or_come_back_as_a_set(
    sets: ImageSets, filled: str, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    sets.copy_to(filled, copy)
    sets.create("Set 2")
    assert sets.gather(copy, "Pictures of Ink") == filled
    sets.remove(filled, "0001.jpg")
    again = sets.gather(copy, "Pictures of Ink")
    assert sets.title(again) == "Pictures of Ink"
    assert sorted(captions(sets, again).values()) == ["a castle, ink style\na castle", "red fox"]
    assert sets.gather(copy, "Once more") == again
    sets.copy_to(filled, tmp_path / "one")
    alone = sets.discard(filled) and sets.gather(tmp_path / "one", "One")
    assert sets.gather(tmp_path / "one", "Two") == alone, "also where a number is missing"


def test_a_picture_can_be_taken_out_and_put_back(
    sets: ImageSets, filled: str, pictures: Path
) -> None:
    before = sets.find(filled)
    sets.remove(filled, "0001.jpg")
    assert [image.name for image in sets.find(filled).images] == ["0002.png"]
    sets.put_back(filled, "0001.jpg")
    assert sets.find(filled) == before
    sets.remove(filled, "0001.jpg")
    sets.add(filled, [pictures / "IMG_0002.jpg"])
    assert sets.find(filled).images[-1].name == "0003.jpg", "no name is given twice"


def test_a_set_is_thrown_away_and_comes_back_as_it_was(sets: ImageSets, filled: str) -> None:
    before, other = captions(sets, filled), sets.create("Other")
    ticket = sets.discard(filled).ticket
    assert sets.ids() == [other]
    with pytest.raises(SetError, match="not there any more"):
        sets.discard(filled)
    for hostile in ("", "..", ".trash", f"../{sets.folder.name}/{other}"):
        with pytest.raises(SetError):
            sets.discard(hostile)
    assert ImageSets(sets.folder).restore(ticket) == filled
    assert captions(sets, filled) == before
    assert not sets.trash.items()
    with pytest.raises(TrashError):
        sets.restore(ticket)


@pytest.mark.parametrize("name", ["../../../etc/passwd", "set.json", "0001.txt", "", "0007.png"])
def test_no_name_of_a_picture_is_a_path(sets: ImageSets, filled: str, name: str) -> None:
    for act in (sets.remove, sets.put_back):
        with pytest.raises(SetError):
            act(filled, name)
    for set_id in ("..", "", name):
        with pytest.raises(SetError):
            sets.find(set_id)


# Presets and orders


def test_methods_and_further_settings_are_the_trainers() -> None:
    assert tuple(METHODS) == TRAINERS_METHODS
    assert FIELDS.keys() >= EXTRAS


def test_presets_fit_base_and_kind() -> None:
    presets = read_presets()
    small = [one.name for one in offered(presets, small=True, kind=STYLE)]
    assert small[0] == "emoji-style"
    assert "quick" in small
    assert "sdxl-concept" in [one.name for one in offered(presets, small=False, kind=CONCEPT)]
    style = next(one for one in presets if one.name == "emoji-style")
    assert (style.value("lr", "shira"), style.value("lr", "lora")) == (1e-2, 5e-3)
    assert style.value("resolution", "shira") is None


@pytest.mark.parametrize("preset", [one.name for one in read_presets()])
def test_the_trainer_reads_what_an_order_says(preset: str, tmp_path: Path) -> None:
    order = replace(
        ORDER, preset=preset, title='A "bold" = [name] 🦊\\', lr=1e-3, seed=3,
        sample_prompts=('a "fox", ink', "b"), description=HOSTILE,
    )  # fmt: skip
    places = Places("base", "cpu", tmp_path / "adapters", tmp_path / "cache")
    name, flag, *settings = command(order, places, data=tmp_path / "data", run=tmp_path / "run")
    config = load_config(name, settings)
    assert flag == "--set"
    assert (config.title, config.description) == (order.title, HOSTILE)
    assert (config.sample_prompts, config.trigger_words) == (order.sample_prompts, ("ink style",))
    assert (config.lr, config.seed, config.steps, config.batch) == (1e-3, 3, 4, 2)
    assert (config.tags, config.run) == ((STYLE,), str(tmp_path / "run"))
    assert Order.from_json(order.to_json()) == order


def test_further_settings_name_no_places_and_all_faults_at_once() -> None:
    assert read_extras("batch = 2\n\nflip=true") == {"batch": "2", "flip": "true"}
    with pytest.raises(SettingError, match=r"'avoid' cannot.*'nonsense'.*'data' cannot"):
        read_extras("avoid=/etc/passwd\nnonsense\ndata=x\nlr=3")


# Progress


def rows(*events: dict[str, object]) -> Iterator[dict[str, object]]:
    for second, event in enumerate(events):
        yield {"time": f"2026-11-25T10:00:{second:02d}.000+00:00", **event}


def step(number: int, loss: float) -> dict[str, object]:
    return {"event": "step", "step": number, "loss": loss, "lr": 0.1, "seconds": 0.5}


def test_progress_counts_what_came_out_last() -> None:
    found = summary(
        rows(
            {"event": "started", "steps": 6},
            {"event": "method", "trained": 120},
            step(1, 0.9),
            step(2, 0.8),
            step(3, 9.9),
            {"event": "resumed", "steps": 6},
            step(3, 0.7),
            step(4, 0.6),
            {"event": "sample", "step": 4, "file": "a.png", "prompt": "x"},
            {"event": "warning", "message": "w"},
        )
    )
    assert found.losses == ((1, 0.9), (2, 0.8), (3, 0.7), (4, 0.6))
    assert (found.steps, found.step, found.trained, found.stepping) == (6, 4, 120, True)
    assert found.pace == pytest.approx(5 / 3)
    assert found.seconds_left == pytest.approx(10 / 3)
    assert found.samples[0].file == "a.png"
    assert summary(rows({"event": "started", "steps": 6})).seconds_left is None


def test_torn_and_strange_lines_are_passed_over(tmp_path: Path) -> None:
    log = tmp_path / "events.jsonl"
    lines = [json.dumps(row) for row in rows({"event": "started", "steps": 2}, step(1, 0.5))]
    log.write_text("\n".join([*lines, "[1]", '{"event": 3}', '{"event": "step", "st']))
    assert Logs().read(log).step == 1
    assert Logs().read(tmp_path / "none").steps == 0


def test_a_log_is_read_again_only_when_it_has_changed(tmp_path: Path) -> None:
    trainings = Trainings(tmp_path, Places("base", "cpu", tmp_path, tmp_path))
    for number in range(100):
        run = tmp_path / f"20261125-100000-{number:012x}" / "run"
        run.mkdir(parents=True)
        (run.parent / "order.json").write_text(ORDER.to_json())
        lines = (json.dumps(row) for row in rows({"event": "started", "steps": 2}, step(1, 0.5)))
        (run / "events.jsonl").write_text("\n".join([*lines, ""]))
    newest, *others = trainings.all()
    with (newest.folder / "run" / "events.jsonl").open("a") as log:
        log.write(json.dumps({**step(2, 0.4), "time": "2026-11-25T10:01:00+00:00"}))
    changed, *same = trainings.advance()
    assert (newest.progress.step, changed.progress.step) == (1, 2)
    assert all(one.progress is again.progress for one, again in zip(others, same, strict=True))

    held = weakref.ref(changed.progress)
    trainings.remove(changed.id)
    del changed
    assert held() is None


def test_the_drawn_loss_is_thinned_to_evenly_spaced_points_and_its_average_is_unbiased() -> None:
    losses = tuple((number, 0.5) for number in range(1, 2001))
    points = train_view.loss_points(losses)
    assert len(points) <= train_view.POINTS
    assert points[-1] == [2000, 0.5, 0.5]
    assert {average for _, _, average in points} == {0.5}
    assert train_view.loss_points(()) == []


# Estimates


def test_a_dry_run_in_words() -> None:
    said = [
        "name: x, method shira", "data: 2 images", "  0001.png 40 x 32: lion", "remark: blurred",
        "trained values: 12", "steps: /place/4",
    ]  # fmt: skip
    found = read(said, "fault: first\n  - more\nfault: second", hidden=("/place/",))
    assert found.facts == (("data", "2 images"), ("trained values", "12"), ("steps", "4"))
    assert found.remarks == ("blurred",)
    assert found.faults == ("first\n  - more", "second")
    assert read([], "Traceback\n  x\nValueError: no").faults == ("ValueError: no",)
    page = train_view.estimate(replace(found, faults=(HOSTILE,)))
    assert "<img" not in page


def test_words_that_the_base_never_read_are_remarked_on() -> None:
    known = Vocabulary(
        concepts=("red fox",), styles=("noto style",), modifiers=(), others=("a",), alike={}
    )
    (remark,) = strangers(known, ["a red fox, ink style", "a wug, noto style"], "ink style")
    assert "“wug”" in remark
    assert "ink" not in remark.split(":")[0]
    assert strangers(known, ["a red fox, ink style"], "ink style") == ()
    assert strangers(None, ["anything"], "") == ()


def test_a_trigger_that_all_captions_share_is_no_stranger(
    toy_base: Path, pictures: Path, tmp_path: Path
) -> None:
    base = tmp_path / "base"
    shutil.copytree(toy_base, base)
    words = {"concepts": ["red fox", "castle"], "styles": [], "modifiers": [], "others": ["a"]}
    (base / "words.json").write_text(json.dumps({**words, "alike": {}}))
    studio = open_toy(base, tmp_path / "adapters", tmp_path / "outputs")
    handlers = TrainHandlers(studio, Presets.of(studio))
    set_id = studio.workshop.sets.create("Ink")
    studio.workshop.sets.add(set_id, pictures.iterdir())
    shown = {
        "images": [
            {"name": "0001.jpg", "captions": "castle, inky style"},
            {"name": "0002.png", "captions": "wug, inky style"},
        ]
    }
    form = train_form.filled(replace(ORDER, trigger=""), handlers.presets)
    form = form._replace(preset=ORDER.preset)
    told = list(handlers.check(set_id, shown, *form))[-1]
    studio.workshop.keeper.close()
    assert "never read “wug”:" in told
    assert "<dd>inky style</dd>" in told


# Runs


@pytest.fixture
def workshop(toy_base: Path, tmp_path: Path) -> Iterator[Workshop]:
    library = AdapterLibrary(tmp_path / "adapters")
    workshop = open_workshop(str(toy_base), library, tmp_path / "outputs", "cpu")
    yield workshop
    workshop.keeper.close()
    for training in workshop.trainings.all():
        process = read_process(training.folder)
        if process:
            process.stop()


def test_the_name_of_an_unfinished_training_is_taken(toy_base: Path, tmp_path: Path) -> None:
    library = AdapterLibrary(tmp_path / "adapters")
    workshop = open_workshop(str(toy_base), library, tmp_path / "outputs", "cpu")
    workshop.keeper.close()
    assert library.taken() == set()
    folder = workshop.trainings.folder / "20261125-120000-0123456789ab"
    folder.mkdir(parents=True)
    (folder / "order.json").write_text(ORDER.to_json())
    assert library.taken() == {"bold-ink"}
    (folder / "run").mkdir()
    (folder / "run" / "events.jsonl").write_text('{"event": "finished", "time": 1.0}\n')
    assert library.taken() == set()


def wait_for(trainings: Trainings, training_id: str, *states: State) -> Training:
    deadline = time.monotonic() + RUN_SECONDS
    while time.monotonic() < deadline:
        training = trainings.find(training_id)
        if training.state in states:
            return training
        time.sleep(0.1)
    pytest.fail(f"it stays {training.state}: {training}")


def test_a_training_is_estimated_trained_and_in_the_library(
    workshop: Workshop, sets: ImageSets, filled: str, tmp_path: Path
) -> None:
    folder = workshop.sets.find(filled).folder
    before = sorted(path for path in folder.rglob("*"))
    found = estimate(ORDER, workshop.places, folder, [])
    assert sorted(path for path in folder.rglob("*")) == before
    assert found.faults == ()
    assert dict(found.facts)["trigger words"] == "ink style"
    assert "not known" in dict(found.facts)["time"]

    first = workshop.trainings.order(ORDER, workshop.sets, filled)
    second = workshop.trainings.order(
        replace(ORDER, name="bad", title="Bad", extras={"clip": "-1"}), workshop.sets, filled
    )
    assert workshop.trainings.find(second).state is State.WAITING
    with pytest.raises(TrainingError, match="stop it first"):
        workshop.trainings.remove(first)
    done = wait_for(workshop.trainings, first, State.FINISHED, State.FAILED)
    assert done.problem == ""
    assert (done.progress.step, done.progress.adapter) == (4, "bold-ink")
    adapter = Adapter.load(tmp_path / "adapters" / "bold-ink" / "adapter.safetensors")
    assert (adapter.info.title, adapter.info.tags) == ("Bold ink", (STYLE,))
    card = (tmp_path / "adapters" / "bold-ink" / "card.md").read_text()
    assert "Drawn by Ada" in card

    failed = wait_for(workshop.trainings, second, State.FAILED)
    assert "clip" in failed.problem
    assert str(tmp_path) not in failed.problem
    value = train_view.runs_value(workshop.trainings, AdapterLibrary(tmp_path / "adapters"), first)
    assert value["chosen"]["words"] == "Finished. Bold ink is in the library and under Generate."
    assert value["chosen"]["samples"][0]["pictures"]
    assert json.loads(json.dumps(value)) == value
    assert "Bold ink" in time_taken(ORDER, workshop.trainings.all())[0][1]

    ticket = workshop.trainings.remove(second).ticket
    assert [one.id for one in workshop.trainings.all()] == [first]
    workshop.trainings.put_back(ticket)
    assert {one.id for one in workshop.trainings.all()} == {first, second}


def test_a_training_outlives_its_studio_and_a_killed_one_can_go_on(
    workshop: Workshop, filled: str, tmp_path: Path
) -> None:
    order = replace(ORDER, steps=100_000, extras={**ORDER.extras, "checkpoint_every": "1"})
    training_id = workshop.trainings.order(order, workshop.sets, filled)
    wait_for(workshop.trainings, training_id, State.TRAINING)
    workshop.keeper.close()
    # Another studio on the same folder finds it running and does not start it again.
    other = Trainings(tmp_path / "outputs" / "trainings", workshop.places)
    process = read_process(other.find(training_id).folder)
    assert process is not None
    other.advance()
    assert read_process(other.find(training_id).folder) == process
    with pytest.raises(TrainingError, match="cannot go on"):
        other.resume(training_id)
    deadline = time.monotonic() + RUN_SECONDS
    while other.find(training_id).progress.step < 3 and time.monotonic() < deadline:
        time.sleep(0.1)  # a step is told before its checkpoint is written
    os.kill(process.pid, 9)
    killed = wait_for(other, training_id, State.INTERRUPTED, State.FAILED)
    assert killed.state is State.INTERRUPTED
    assert killed.checkpoint
    assert not process.is_alive()


def test_a_waiting_training_is_found_by_the_next_studio_and_can_be_stopped(
    workshop: Workshop, filled: str, tmp_path: Path
) -> None:
    workshop.keeper.close()
    training_id = workshop.trainings.order(ORDER, workshop.sets, filled)
    waiting = workshop.trainings.order(replace(ORDER, name="next"), workshop.sets, filled)
    workshop.trainings.stop(training_id)
    other = Trainings(tmp_path / "outputs" / "trainings", workshop.places)
    assert other.find(waiting).state is State.WAITING
    workshop.trainings.stop(waiting)
    assert workshop.trainings.find(waiting).state is State.STOPPED
    with pytest.raises(TrainingError, match="no pictures"):
        workshop.trainings.order(ORDER, workshop.sets, workshop.sets.create("Empty"))


def test_a_process_id_that_was_given_out_again_is_not_ours(tmp_path: Path) -> None:
    mine = Process(os.getpid(), time.time() - 10_000)
    assert not mine.is_alive()
    mine.stop()
    (tmp_path / "process.json").write_text(json.dumps(asdict(mine)))
    assert read_process(tmp_path) == mine
    (tmp_path / "process.json").write_text("{")
    assert read_process(tmp_path) is None


@pytest.mark.parametrize("training_id", ["..", "", "../sets", "20260101-000000-abcdefabcdef"])
def test_no_id_of_a_training_is_a_path(workshop: Workshop, training_id: str) -> None:
    for act in (workshop.trainings.stop, workshop.trainings.resume, workshop.trainings.remove):
        with pytest.raises(TrainingError):
            act(training_id)
