"""The engine: exact mixes, exact base, stops, whoever else is at it."""

import hashlib
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from studio_toys import (
    SIDE,
    load_base,
    make_adapter,
    make_engine,
    make_library,
    open_toy,
    recipe,
)

from shira_diffusion import AdapterInfo
from shira_diffusion.errors import SettingError, UnknownAdapterError
from shira_diffusion.fingerprint import fingerprint
from studio import engine as engine_module
from studio.engine import Engine
from studio.steps import Step
from studio.errors import BrokenAdapterError, StoppedError
from studio.watching import Finished, StopFlags, watch


@pytest.fixture(scope="module")
def adapters(toy_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_library(toy_base, tmp_path_factory.mktemp("engine") / "adapters")


@pytest.fixture
def engine(toy_base: Path, adapters: Path) -> Engine:
    return make_engine(toy_base, adapters)


def pixels(engine: Engine, **changes: object) -> bytes:
    return engine.generate(recipe(**changes)).image.tobytes()


def weights(engine: Engine) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in engine._pipe.unet.state_dict().items()}


def assert_base(engine: Engine, before: dict[str, torch.Tensor]) -> None:
    for name, value in engine._pipe.unet.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_the_same_recipe_gives_the_same_picture(engine: Engine) -> None:
    first = pixels(engine, mix={"ink": 1.0})
    other = pixels(engine, mix={"robot": 0.5}, seed=8)
    assert first != other
    assert pixels(engine, mix={"ink": 1.0}) == first
    assert pixels(engine, mix={"ink": 1.0}, seed=8) != first


def test_strengths_count_and_zero_is_the_base(engine: Engine) -> None:
    base = pixels(engine)
    assert pixels(engine, mix={"ink": 0.0}) == base
    made = {pixels(engine, mix={"ink": s}) for s in (-1.0, 0.5, 1.0, 2.0)}
    assert len(made | {base}) == 5
    together = {"ink": 1.0, "robot": 1.0}
    assert pixels(engine, mix=together) == pixels(engine, mix=dict(reversed(together.items())))


def test_the_record_tells_how_the_picture_was_made(engine: Engine, adapters: Path) -> None:
    record = engine.generate(recipe(mix={"ink": 0.5, "robot-lora": -1})).record
    assert record.recipe == recipe(mix={"ink": 0.5, "robot-lora": -1})
    assert [(use.name, use.strength, use.method) for use in record.adapters] == [
        ("ink", 0.5, "shira"),
        ("robot-lora", -1, "lora"),
    ]
    content = (adapters / "ink" / "adapter.safetensors").read_bytes()
    assert record.adapters[0].sha256 == hashlib.sha256(content).hexdigest()
    assert set(record.fingerprints) >= {"unet"}
    assert record.sampling_s > 0
    assert record.switch_ms > 0
    assert record.base == "toy-xl"


def test_two_at_once_get_what_they_get_alone(engine: Engine) -> None:
    before = weights(engine)
    mixes = [{"ink": 1.0}, {"robot": 1.0, "ink": -0.5}, {}, {"robot-lora": 2.0}]
    alone = [pixels(engine, mix=mix) for mix in mixes]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda mix: pixels(engine, mix=mix), mixes * 2))
    assert together == alone * 2
    assert_base(engine, before)


def test_a_stop_ends_within_one_step_and_leaves_the_base(engine: Engine) -> None:
    before, stop, steps = weights(engine), threading.Event(), []

    def on_step(step: Step) -> None:
        steps.append(step.number)
        if step.number == 3:
            stop.set()

    with pytest.raises(StoppedError):
        engine.generate(recipe(steps=20, mix={"ink": 1.0}), on_step=on_step, stop=stop)
    assert steps == [1, 2, 3]
    assert_base(engine, before)
    with pytest.raises(StoppedError):
        engine.generate(recipe(), on_step=on_step, stop=stop)
    assert steps == [1, 2, 3]


def test_a_failure_while_sampling_leaves_the_base(engine: Engine) -> None:
    before = weights(engine)

    def fail(step: Step) -> None:
        raise RuntimeError("no power")

    with pytest.raises(RuntimeError, match="no power"):
        engine.generate(recipe(mix={"ink": 1.0}), on_step=fail)
    assert_base(engine, before)
    assert pixels(engine) == pixels(engine)


def test_what_cannot_be_made_is_refused_before_anything_moves(engine: Engine) -> None:
    before = weights(engine)
    with pytest.raises(UnknownAdapterError, match="'ink'"):
        engine.generate(recipe(mix={"inc": 1.0}))
    with pytest.raises(BrokenAdapterError, match="pickled"):
        engine.generate(recipe(mix={"ink": 1.0, "pickled": 1.0}))
    with pytest.raises(SettingError, match=f"{SIDE} x {SIDE}"):
        engine.generate(recipe(width=64))
    assert_base(engine, before)


def test_an_adapter_of_another_base_is_refused(toy_base: Path, tmp_path: Path) -> None:
    marks = {"unet": fingerprint(load_base(toy_base).unet)}
    for name, made_for in (("same", marks), ("other", {"unet": "0" * 64})):
        info = AdapterInfo(name=name, base_model="other-xl", base_fingerprint=made_for)
        make_adapter(toy_base, tmp_path / "adapters" / name, seed=1, info=info)
    studio = open_toy(toy_base, tmp_path / "adapters", tmp_path / "out")
    with pytest.raises(BrokenAdapterError, match="made for other-xl"):
        studio.engine.generate(recipe(mix={"other": 1.0}))
    assert pixels(studio.engine, mix={"same": 1.0}) != pixels(studio.engine)


def test_a_file_that_changed_is_read_again(toy_base: Path, tmp_path: Path) -> None:
    for seed, name in enumerate(["mine", "next"]):
        make_adapter(toy_base, tmp_path / name, seed=seed, info=AdapterInfo(name="mine"))
    engine = make_engine(toy_base, tmp_path)
    old, new = pixels(engine, mix={"mine": 1.0}), pixels(engine, mix={"next": 1.0})
    (tmp_path / "next" / "adapter.safetensors").replace(tmp_path / "mine" / "adapter.safetensors")
    sample = engine.generate(recipe(mix={"mine": 1.0}))
    assert sample.image.tobytes() == new != old
    content = (tmp_path / "mine" / "adapter.safetensors").read_bytes()
    assert sample.record.adapters[0].sha256 == hashlib.sha256(content).hexdigest()


def test_adapters_out_of_use_make_room(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "CACHE_BYTES", 1)
    alone = [pixels(engine, mix={name: 1.0}) for name in ("ink", "robot")]
    assert engine._switcher.names == ("robot",)
    assert [pixels(engine, mix={name: 1.0}) for name in ("ink", "robot")] == alone


def test_a_prompt_that_is_too_long_is_remarked(engine: Engine) -> None:
    (remark,) = engine.generate(recipe(prompt="castle " * 200)).remarks
    assert "left out" in remark
    assert engine.generate(recipe()).remarks == ()


def test_watch_yields_reports_then_the_result_or_the_error() -> None:
    def work(report: object) -> str:
        report(1)
        report(2)
        return "done"

    assert list(watch(work)) == [1, 2, Finished("done")]

    def fail(report: object) -> str:
        report(1)
        raise StoppedError("halt")

    seen = watch(fail)
    assert next(seen) == 1
    with pytest.raises(StoppedError, match="halt"):
        next(seen)


def test_stop_flags_reach_their_owner_only() -> None:
    flags = StopFlags()
    flags.arm("a")
    flags.arm("b")
    flags.raise_flag("a")
    flags.raise_flag("nobody")
    assert flags.flag("a").is_set()
    assert not flags.flag("b").is_set()
    running = flags.flag("a")
    flags.arm("a")
    assert not running.is_set()
    flags.raise_flag("a")
    assert running.is_set()
    flags.forget("b")
    flags.raise_flag("b")
    assert not flags.flag("b").is_set()
