"""The engine: exact mixes, exact base, stops, whoever else is at it."""

import hashlib
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from diffusers import AutoencoderKL, LCMScheduler
from PIL import Image
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
from studio import steps as steps_module
from studio.engine import Engine
from studio.errors import BrokenAdapterError, StoppedError
from studio.library import AdapterLibrary
from studio.preview import Preview, watch_prediction
from studio.samplers import Samplers
from studio.steps import Step

ROOT = Path(__file__).parent.parent


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


def test_adapters_out_of_use_make_room(
    toy_base: Path, adapters: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "HOST_BYTES", 1)
    engine = make_engine(toy_base, adapters)
    alone = [pixels(engine, mix={name: 1.0}) for name in ("ink", "robot")]
    assert engine._switcher._residency.where("ink") == "disk"
    assert [pixels(engine, mix={name: 1.0}) for name in ("ink", "robot")] == alone


def test_an_adapter_that_left_the_library_leaves_the_memory(toy_base: Path, tmp_path: Path) -> None:
    for name in ("mine", "other"):
        make_adapter(toy_base, tmp_path / name, seed=1, info=AdapterInfo(name=name))
    engine = make_engine(toy_base, tmp_path)
    pixels(engine, mix={"mine": 1.0})
    shutil.rmtree(tmp_path / "mine")
    engine.library.rescan()
    pixels(engine, mix={"other": 1.0})
    assert engine._switcher.names == ("other",)


def test_preparing_changes_nothing_and_waits_for_nobody(engine: Engine) -> None:
    before, expected = weights(engine), pixels(engine, mix={"ink": 1.0})
    engine.prepare({"ink": 1.0, "robot": 1.0, "gone": 1.0}, {"robot": "late"})
    assert set(engine._switcher.names) == {"ink", "robot"}
    with engine._lock:
        engine.prepare({"lonely": 1.0}, {})
    assert "lonely" not in engine._switcher.names
    assert_base(engine, before)
    assert pixels(engine, mix={"ink": 1.0}) == expected


def test_the_library_is_loaded_ahead_within_bounds(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = weights(engine)
    monkeypatch.setattr(engine_module, "AHEAD_BYTES", 1)
    engine.load_ahead()
    assert engine._switcher.names == ()
    monkeypatch.setattr(engine_module, "AHEAD_BYTES", 2**30)
    engine.load_ahead()
    assert set(engine._switcher.names) == {"ink", "ink-lora", "lonely", "robot", "robot-lora"}
    assert_base(engine, before)


def by_hand(engine: Engine, mixes: list[dict[str, float]]) -> bytes:
    """A picture made with the pipeline and the switcher alone, one mix after the other."""
    made = recipe(steps=len(mixes))

    def after(_pipe: object, step: int, _time: object, tensors: dict[str, object]) -> object:
        engine._switcher.set(mixes[step + 1] if step + 1 < len(mixes) else {})
        return tensors

    engine._pipe.scheduler = engine._samplers.make("")
    engine._switcher.set(mixes[0])
    output = engine._pipe(
        prompt=made.prompt, num_inference_steps=made.steps, guidance_scale=made.guidance,
        width=made.width, height=made.height, callback_on_step_end=after,
        generator=torch.Generator("cpu").manual_seed(made.seed),
    )  # fmt: skip
    return output.images[0].tobytes()


@pytest.mark.parametrize(
    ("timing", "mixes"),
    [
        ({"ink": "early"}, ["ir", "ir", "r", "r"]),
        ({"ink": "late"}, ["r", "r", "ir", "ir"]),
        ({"ink": "early", "robot": "late"}, ["i", "i", "r", "r"]),
        ({"ink": "alternate", "robot": "alternate"}, ["i", "r", "i", "r"]),
        ({"ink": "always"}, ["ir", "ir", "ir", "ir"]),
    ],
)
def test_timing_says_which_steps_see_an_adapter(
    engine: Engine, timing: dict[str, str], mixes: list[str]
) -> None:
    mix = {"ink": 1.0, "robot": -0.5}
    short = {"i": "ink", "r": "robot"}
    made = pixels(engine, mix=mix, timing=timing, steps=4)
    steps = [{short[one]: mix[short[one]] for one in step} for step in mixes]
    assert made == by_hand(engine, steps)


def test_switching_never_compiles_again(toy_base: Path, adapters: Path) -> None:
    pipe = load_base(toy_base)
    # As `Machine` does for --compile, less the code generator: what counts is what is traced.
    pipe.unet.compile_repeated_blocks(fullgraph=True, backend="eager")
    engine = Engine(pipe, AdapterLibrary(adapters), "toy")
    alone = [pixels(make_engine(toy_base, adapters), mix=mix) for mix in ({}, {"ink": 1.0})]
    assert pixels(engine) == alone[0]
    with torch._dynamo.config.patch(error_on_recompile=True):
        assert pixels(engine, mix={"ink": 1.0}) == alone[1]
        pixels(engine, mix={"robot": 1.0, "ink": -0.5}, timing={"ink": "late"}, steps=4)
        assert pixels(engine) == alone[0]
    torch._dynamo.reset()


def test_every_sampler_makes_its_own_picture_again_and_again(engine: Engine) -> None:
    names = engine.base.samplers
    assert names[0] == "Euler"
    made = {name: pixels(engine, sampler=name, steps=4) for name in names}
    assert len(set(made.values())) == len(names)
    assert {name: pixels(engine, sampler=name, steps=4) for name in names} == made
    assert pixels(engine, steps=4) == made["Euler"]
    assert engine.generate(recipe(sampler=names[1])).record.sampler == names[1]
    with pytest.raises(SettingError, match="no sampler 'Eular'"):
        engine.generate(recipe(sampler="Eular"))


def test_karras_spacing_is_left_out_where_it_spoils(toy_base: Path) -> None:
    own = load_base(toy_base).scheduler
    for zero_snr in (True, False):
        names = Samplers(type(own).from_config(own.config, rescale_betas_zero_snr=zero_snr)).names
        assert ("DPM++ 2M Karras" in names) is not zero_snr
    lcm = LCMScheduler.from_config(own.config)
    assert Samplers(lcm).names[0] == "LCM"
    assert type(Samplers(lcm).make("")) is LCMScheduler


def test_the_last_step_was_taken_towards_what_came_out(engine: Engine) -> None:
    for name in engine.base.samplers:
        scheduler = engine._samplers.make(name)
        engine._pipe.scheduler, prediction = scheduler, watch_prediction(scheduler)
        latents = engine._pipe(
            prompt="a castle", num_inference_steps=4, output_type="latent", guidance_scale=3.0,
            generator=torch.Generator("cpu").manual_seed(7),
        ).images  # fmt: skip
        assert torch.allclose(prediction(latents), latents, atol=1e-4), name


def test_previews_come_and_change_nothing(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps_module, "PREVIEW_SECONDS", 0)
    steps: list[Step] = []
    made = engine.generate(recipe(steps=4), on_step=steps.append).image
    assert [step.preview is None for step in steps] == [False, False, False, True]
    assert steps[0].preview.size == (SIDE, SIDE)
    assert made.tobytes() == pixels(engine, steps=4)
    assert [step.number for step in steps] == [1, 2, 3, 4]


class Offload(ModelHook):
    """Stands for the hook of CPU offload, which moves the weights when the VAE is called."""

    def pre_forward(self, module: torch.nn.Module, *args: object, **kwargs: object) -> object:
        raise AssertionError("the VAE was called")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_preview_leaves_an_offloaded_vae_where_it_is(toy_base: Path, dtype: torch.dtype) -> None:
    vae = load_base(toy_base).vae.to(dtype)
    latents = torch.randn(1, vae.config.latent_channels, 8, 8)
    expected = Preview(vae).picture(latents)
    before = {name: value.clone() for name, value in vae.state_dict().items()}
    add_hook_to_module(vae, Offload())
    with pytest.raises(AssertionError, match="was called"):
        vae.encode(torch.zeros(1, 3, SIDE, SIDE, dtype=dtype))
    assert Preview(vae).picture(latents).tobytes() == expected.tobytes()
    assert all(torch.equal(before[name], value) for name, value in vae.state_dict().items())


def test_a_preview_looks_like_what_the_vae_encoded() -> None:
    vae = AutoencoderKL.from_pretrained(ROOT / "models" / "emoji-xl" / "vae")
    with Image.open(ROOT / "adapters" / "rocket" / "thumbnail.png") as thumbnail:
        picture = np.asarray(thumbnail.convert("RGB").resize((128, 128)), np.float32) / 255
    with torch.no_grad():
        pixels = torch.from_numpy(picture).permute(2, 0, 1)[None] * 2 - 1
        latents = vae.encode(pixels).latent_dist.mode() * vae.config.scaling_factor
    seen = np.asarray(Preview(vae).picture(latents), np.float32) / 255
    assert seen.shape == picture.shape
    assert np.abs(seen - picture).mean() < 0.1
    assert np.corrcoef(seen.ravel(), picture.ravel())[0, 1] > 0.9


def test_a_prompt_that_is_too_long_is_remarked(engine: Engine) -> None:
    (remark,) = engine.generate(recipe(prompt="castle " * 200)).remarks
    assert "left out" in remark
    assert engine.generate(recipe()).remarks == ()


def test_a_remark_leaves_the_models_own_tokenizer_alone(engine: Engine) -> None:
    engine.generate(recipe())
    own = engine._pipe.tokenizer.backend_tokenizer
    before = own.truncation, own.padding
    assert engine.remarks(recipe(prompt="castle " * 200))
    assert (own.truncation, own.padding) == before != (None, None)
