"""Plans carried out on the toy base: real training, drawing and judging, on the CPU."""

import os
import signal
import threading
import time
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from evaluation_toys import write_plan

from evaluation.__main__ import main
from evaluation.bench import Bench, _encoded, _in_batches
from evaluation.board import Board
from evaluation.carry_out import carry_out
from evaluation.command import FAILED, UNFINISHED
from evaluation.drawings import all_drawings
from evaluation.errors import EvaluationError
from evaluation.pieces import Draw
from evaluation.place import Place
from evaluation.plan import Plan
from evaluation.plan_file import read_plan
from evaluation.pool import Alone
from evaluation.progress import Progress
from evaluation.records import Lines
from evaluation.training_run import config_of
from evaluation.trainings import all_trainings
from shira_diffusion import Adapter

KINDS = """
[recipes.dora]
method = "dora"

[recipes.symlora]
method = "symlora"

[recipes.shira-dora]
method = "shira-dora"
density = 0.1
rank = 2

[recipes.peft-shira]
method = "shira"
density = 0.1
trainer = "peft-shira"

[recipes.disjoint]
method = "shira"
density = 0.3
disjoint = true
"""

COSTS = {"values": 1, "bytes": 1, "seconds": 1.0}


def run(plan: Plan, folder: Path, until: float = 1e9, device: str = "cpu") -> Progress:
    place = Place(folder / "run", folder / "work")
    return carry_out(plan, place, Alone(Bench(place.work, device, place.pictures)), until=until)


def lines(folder: Path, name: str = "records.jsonl") -> list[dict[str, Any]]:
    return list(Lines(folder / name).read())


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, toy_base: Path) -> Path:
    """Folder of a plan that was carried out: its file is plan.toml."""
    folder = tmp_path_factory.mktemp("evaluation")
    plan = read_plan(write_plan(folder, toy_base))
    progress = run(plan, folder)
    assert progress == Progress(4, 4, 7, 7)
    return folder


def test_every_picture_has_one_record(done: Path) -> None:
    plan = read_plan(done / "plan.toml")
    expected = [key for drawing in all_drawings(plan) for key in drawing.every_key()]
    records = lines(done / "run")
    assert sorted(str(record["key"]) for record in records) == sorted(expected)
    for record in records:
        assert set(record["scores"]) == {"concept", "style", "concept_p", "style_p", "diversity"}


def test_every_adapter_is_listed_with_what_it_costs(done: Path) -> None:
    listed = lines(done / "run", "adapters.jsonl")
    for training in all_trainings(read_plan(done / "plan.toml")):
        (line,) = [line for line in listed if line["name"] == training.name]
        file = training.file(done / "work")
        assert line["bytes"] == file.stat().st_size
        if training.recipe.name == "shira":
            assert line["values"] == Adapter.load(file).nnz


def test_what_a_training_warns_of_is_in_its_line(tmp_path: Path, toy_base: Path) -> None:
    plan = read_plan(write_plan(tmp_path, toy_base))
    (tmp_path / "robot" / "scan.heic").touch()
    run(plan, tmp_path)
    for line in lines(tmp_path / "run", "adapters.jsonl"):
        warned = any("scan.heic" in warning for warning in line.get("warnings", []))
        assert warned == (line["subject"] == "robot")


def test_one_ctrl_c_ends_the_command(tmp_path: Path, toy_base: Path) -> None:
    file = write_plan(tmp_path, toy_base)
    (tmp_path / "preset.toml").write_text("steps = 99999\nbatch = 1\n")

    def press() -> None:
        while not any(
            '"step"' in log.read_text() for log in tmp_path.glob("work/trained/*/*.jsonl")
        ):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=press, daemon=True).start()
    place = ["--work", str(tmp_path / "work"), "--out", str(tmp_path / "run"), "--device", "cpu"]
    assert main([str(file), *place]) == 130
    assert not (tmp_path / "run" / "failures.jsonl").exists()


def test_an_adapter_whose_line_was_lost_is_listed_as_before(done: Path, tmp_path: Path) -> None:
    listed = lines(done / "run", "adapters.jsonl")
    place = Place(tmp_path, done / "work")
    carry_out(read_plan(done / "plan.toml"), place, Alone(Bench(place.work, "cpu")))
    assert lines(tmp_path, "adapters.jsonl") == listed
    assert all("seconds" in line for line in listed)
    # Of an adapter that was copied here nobody knows what it took.
    trained = done / "work" / "trained"
    trained.rename(done / "elsewhere")
    place = Place(tmp_path / "second", done / "work")
    carry_out(read_plan(done / "plan.toml"), place, Alone(Bench(place.work, "cpu")))
    (done / "elsewhere").rename(trained)
    found = lines(place.folder, "adapters.jsonl")
    assert len(found) == len(listed)
    assert not any("seconds" in line for line in found)


def test_a_finished_plan_does_nothing_again(done: Path) -> None:
    records = (done / "run" / "records.jsonl").read_bytes()
    adapters = (done / "run" / "adapters.jsonl").read_bytes()
    assert run(read_plan(done / "plan.toml"), done).finished
    assert (done / "run" / "records.jsonl").read_bytes() == records
    assert (done / "run" / "adapters.jsonl").read_bytes() == adapters


def test_only_what_is_missing_is_drawn_again(done: Path) -> None:
    before = lines(done / "run")
    file = done / "run" / "records.jsonl"
    file.write_text(file.read_text()[:-30])  # the last line is torn
    assert len(lines(done / "run")) == len(before) - 1
    assert run(read_plan(done / "plan.toml"), done).finished
    assert lines(done / "run") == before


def test_pictures_depend_on_seed_and_mix_alone(done: Path, toy_base: Path) -> None:
    """The batches' bounds, at 3 pictures here, have no part in them."""
    plan = read_plan(done / "plan.toml")
    bench = Bench(done / "work", "cpu")
    drawing = next(d for d in all_drawings(plan) if len(d.adapters) == 2)
    assert bench.draw(drawing) == bench.draw(drawing)


def test_each_prompt_is_encoded_as_the_pipeline_would(toy_pipe: StableDiffusionXLPipeline) -> None:
    prompts = ["a castle", "a happy robot", "a castle", "a castle"]
    names = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds")
    for guidance in (3.0, 1.0):
        found = _encoded(toy_pipe, prompts, guidance)
        known = toy_pipe.encode_prompt(prompts, do_classifier_free_guidance=guidance > 1)
        assert len(found) == len(known) == 4
        for name, expected in zip((*names, "negative_pooled_prompt_embeds"), known, strict=True):
            torch.testing.assert_close(found[name], expected)


@pytest.mark.parametrize(
    ("count", "most", "sizes"), [(0, 4, []), (4, 4, [4]), (5, 4, [2, 3]), (240, 96, [80, 80, 80])]
)
def test_batches_are_about_as_large(count: int, most: int, sizes: list[int]) -> None:
    parts = _in_batches(range(count), most)
    assert [len(part) for part in parts] == sizes
    assert [one for part in parts for one in part] == list(range(count))


def test_the_base_is_left_as_it_was(done: Path) -> None:
    plan = read_plan(done / "plan.toml")
    bench = Bench(done / "work", "cpu")
    first = bench.draw(all_drawings(plan)[0])
    pipe, _ = bench._base(plan.base)
    before = {name: weight.clone() for name, weight in pipe.unet.state_dict().items()}
    for drawing in all_drawings(plan)[1:4]:
        bench.draw(drawing)
    after = pipe.unet.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert bench.draw(all_drawings(plan)[0]) == first


def test_no_time_means_nothing_is_begun(tmp_path: Path, toy_base: Path) -> None:
    progress = run(read_plan(write_plan(tmp_path, toy_base)), tmp_path, until=0)
    assert (progress.trained, progress.drawn) == (0, 0)
    assert not progress.finished


def test_what_fails_does_not_say_how_long_work_takes(tmp_path: Path, toy_base: Path) -> None:
    plan = read_plan(write_plan(tmp_path, toy_base))
    board = Board(Place(tmp_path / "run", tmp_path), all_trainings(plan), ())
    begun = [board.take(9) for _ in range(2)]
    for seconds, failure in ((60, ValueError("no")), (10, None)):
        piece, future = begun.pop(), Future[Any]()
        assert piece is not None
        future.set_exception(failure) if failure else future.set_result({})
        board.settle(piece, future, seconds)
    assert board.take(9) is None
    assert board.take(11) is not None


def with_a_failing_lora(folder: Path, base: Path) -> Path:
    file = write_plan(folder, base, '[recipes.after]\nlike = "lora"\nlr = 1e-2\n')
    failing = 'method = "lora"\nlr = 1e30\nclip = 0.0'
    file.write_text(file.read_text().replace('method = "lora"', failing))
    return file


def test_an_adapter_that_fails_holds_up_only_its_own(tmp_path: Path, toy_base: Path) -> None:
    progress = run(read_plan(with_a_failing_lora(tmp_path, toy_base)), tmp_path)
    assert (progress.trained, progress.trainings) == (4, 6)
    assert len(progress.failures) == 2
    assert all("lower lr" in failure for failure in progress.failures)
    assert progress.drawn == 7  # the base, shira and the other lora alone twice and together
    assert progress.left == 0
    assert not progress.finished


def test_the_command_reports_what_failed_and_goes_on_when_it_is_mended(
    tmp_path: Path, toy_base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = with_a_failing_lora(tmp_path, toy_base)
    place = ["--work", str(tmp_path / "work"), "--out", str(tmp_path / "run"), "--device", "cpu"]
    assert main([str(file), *place, "--until", "0"]) == UNFINISHED
    assert main([str(file), *place]) == FAILED
    assert "failed: robot-lora-0-" in capsys.readouterr().out
    page = tmp_path / "run" / "report" / "index.html"
    table = page.with_name("table.md")
    assert "<li>robot-lora-0-" in page.read_text()
    assert table.read_text().count("- failed: ") == 2
    # Something else stands in an adapter's way, which then goes.
    name = next(t.name for t in all_trainings(read_plan(file)) if t.recipe.name == "lora")
    Lines(tmp_path / "run" / "adapters.jsonl").append([{"name": name, "recipe": "lora"} | COSTS])
    assert main(["report", str(tmp_path / "run"), "--out", str(page.parent)]) == 0
    assert table.read_text().count("- failed: ") == 1


def test_what_needs_a_failed_adapter_is_not_waited_for(tmp_path: Path, toy_base: Path) -> None:
    """Concepts keep off the styles' entries, and no style can be trained."""
    recipe = 'method = "shira"\ndensity = 0.1\ndisjoint = true\n'
    file = write_plan(tmp_path, toy_base, f"[recipes.apart]\n{recipe}style = {{ lr = 1e30 }}\n")
    text = file.read_text().replace("lr = 1e30", "lr = 1e30, clip = 0.0")
    file.write_text(text)
    progress = run(read_plan(file), tmp_path)
    assert (progress.trained, len(progress.failures), progress.left) == (4, 1, 0)


class Mortal:
    """Works here, but its process dies at the first of every drawing, and of one always."""

    size = 1

    def __init__(self, bench: Bench, doomed: str) -> None:
        self._alone = Alone(bench)
        self._doomed = doomed
        self._seen: set[str] = set()

    def submit(self, work: Any) -> Future[Any]:
        if isinstance(work, Draw) and (work.key not in self._seen or work.key == self._doomed):
            self._seen.add(work.key)
            future: Future[Any] = Future()
            future.set_exception(BrokenProcessPool())
            return future
        return self._alone.submit(work)


def test_what_dies_with_its_worker_is_begun_anew(done: Path, tmp_path: Path) -> None:
    plan = read_plan(done / "plan.toml")
    place = Place(tmp_path, done / "work")
    doomed = next(all_drawings(plan)[3].every_key())
    progress = carry_out(plan, place, Mortal(Bench(place.work, "cpu"), doomed))
    assert (progress.drawn, progress.drawings) == (6, 7)
    assert "died each time" in progress.failures[0]


class Dying:
    """Takes two pieces of work and does them later, then nothing more."""

    size = 3

    def __init__(self, bench: Bench) -> None:
        self._alone = Alone(bench)
        self._begun: list[tuple[Any, Future[Any]]] = []

    def submit(self, work: Any) -> Future[Any]:
        if len(self._begun) == 2:
            for begun, future in self._begun:
                future.set_result(self._alone.submit(begun).result())
            raise EvaluationError("again and again")
        self._begun.append((work, Future()))
        return self._begun[-1][1]


def test_what_is_at_work_is_written_down_before_the_end(done: Path, tmp_path: Path) -> None:
    place = Place(tmp_path, done / "work")
    with pytest.raises(EvaluationError, match="again and again"):
        carry_out(read_plan(done / "plan.toml"), place, Dying(Bench(place.work, "cpu")))
    assert len(lines(tmp_path, "adapters.jsonl")) + len(lines(tmp_path)) > 1


def test_every_way_of_training_is_drawn(tmp_path: Path, toy_base: Path) -> None:
    file = write_plan(tmp_path, toy_base, KINDS)
    file.write_text(file.read_text().replace("seeds = [0, 1]\nbatch", "seeds = [0]\nbatch"))
    plan = read_plan(file)
    progress = run(plan, tmp_path)
    assert progress.finished, progress.failures
    by_name = {t.recipe.name + t.subject.kind: t for t in all_trainings(plan)}
    style, concept = (
        Adapter.load(by_name[f"disjoint{kind}"].file(tmp_path / "work"))
        for kind in ("style", "concept")
    )
    for name, delta in style.deltas.items():
        assert not set(delta.indices.tolist()) & set(concept.deltas[name].indices.tolist())
    style, concept = (
        Adapter.load(by_name[f"peft-shira{kind}"].file(tmp_path / "work"))
        for kind in ("style", "concept")
    )
    for name, delta in style.deltas.items():  # PEFT's masks are all the same
        assert delta.indices.tolist() == concept.deltas[name].indices.tolist()


def test_graphs_are_for_cuda_and_what_it_can_capture(tmp_path: Path, toy_base: Path) -> None:
    texts = '[recipes.texts]\nmethod = "shira"\ntrain_text_encoders = true\n'
    plan = read_plan(write_plan(tmp_path, toy_base, KINDS + texts))
    found = {
        (training.recipe.name, device)
        for training in all_trainings(plan)
        for device in ("cpu", "cuda:0")
        if config_of(training, tmp_path, tmp_path, device).cuda_graphs
    }
    names = set(plan.recipes) - {"peft-shira", "texts"}
    assert found == {(name, "cuda:0") for name in names}


@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
@pytest.mark.parametrize("wanted", [False, True])
def test_a_recipes_own_graphs_are_its_own(
    wanted: bool, device: str, tmp_path: Path, toy_base: Path
) -> None:
    own = f'[recipes.own]\nmethod = "lora"\ncuda_graphs = {str(wanted).lower()}\n'
    plan = read_plan(write_plan(tmp_path, toy_base, own))
    (training, *_) = [one for one in all_trainings(plan) if one.recipe.name == "own"]
    assert config_of(training, tmp_path, tmp_path, device).cuda_graphs == wanted


@pytest.mark.gpu
def test_every_way_of_training_is_captured(tmp_path: Path, toy_base: Path) -> None:
    progress = run(read_plan(write_plan(tmp_path, toy_base, KINDS)), tmp_path, device="cuda")
    assert progress.finished, progress.failures
    assert [
        one["warnings"] for one in lines(tmp_path / "run", "adapters.jsonl") if "warnings" in one
    ] == []


@pytest.mark.slow
def test_two_processes_do_as_one(done: Path, tmp_path: Path) -> None:
    """Adapters are there already, so that this draws only."""
    work, out = str(done / "work"), tmp_path / "out"
    options = ["--work", work, "--out", str(out), "--workers", "2", "--device", "cpu"]
    assert main([str(done / "plan.toml"), *options]) == 0
    found, expected = ({line["key"]: line for line in lines(f)} for f in (out, done / "run"))
    assert found.keys() == expected.keys()
    for key, line in found.items():
        assert line["scores"] == pytest.approx(expected[key]["scores"], abs=1e-3)
