"""The parts of a run on their own: batches, encoding, class images, checkpoints, events."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from PIL import Image
from torch import Tensor

from training.batches import Batches, in_turn
from training.checkpoint import Checkpoints
from training.data import CaptionedImage
from training.encode import Encoder, Example, TensorCache, encode_pixels, normalise
from training.errors import RunError
from training.events import EventLog
from training.images import Framing, open_image, to_pixels
from training.machine import Machine
from training.prior import Prior
from training.sampling import Sampler
from training.views import View

# The toy's layers are too small to share between cores: on busy ones that costs minutes.
torch.set_num_threads(1)

CPU = Machine(torch.device("cpu"), torch.float32)


def example(number: int) -> Example:
    full = [torch.full(shape, float(number)) for shape in ((4, 8, 8), (5, 6), (7,), (6,))]
    return Example(*full)


def batches(instances: int, classes: int, **settings: Any) -> Batches:
    defaults = {"batch": 4, "class_batch": 2, "class_weight": 0.5, "train_timesteps": 1000}
    return Batches(
        [example(number) for number in range(instances)],
        [example(100 + number) for number in range(classes)],
        **{**defaults, "seed": 3, **settings},
    )


def test_every_image_comes_once_a_round_in_a_new_order() -> None:
    places = in_turn(5, 0, 20, seed=1, name="x")
    rounds = [places[start : start + 5] for start in range(0, 20, 5)]
    assert all(sorted(round_) == list(range(5)) for round_ in rounds)
    assert len({tuple(round_) for round_ in rounds}) > 1
    assert places[7:13] == in_turn(5, 7, 6, seed=1, name="x")
    assert places != in_turn(5, 0, 20, seed=2, name="x")


def test_batch_holds_instances_then_classes_with_their_weights() -> None:
    batch = batches(6, 3).draw(0, CPU)
    numbers = batch.latents[:, 0, 0, 0]
    assert bool((numbers[:4] < 6).all())
    assert bool((numbers[4:] >= 100).all())
    for tensor in (batch.prompt_embeds[:, 0, 0], batch.pooled[:, 0], batch.time_ids[:, 0]):
        assert torch.equal(tensor, numbers)
    assert batch.weights.tolist() == [0.25] * 4 + [0.25] * 2
    assert bool(((batch.timesteps >= 0) & (batch.timesteps < 1000)).all())


def test_batches_differ_by_index_and_seed_only() -> None:
    def noise(seed: int, index: int) -> Tensor:
        return batches(6, 0, seed=seed).draw(index, CPU).noise

    assert torch.equal(noise(3, 5), noise(3, 5))
    assert not torch.equal(noise(3, 5), noise(3, 6))
    assert not torch.equal(noise(3, 5), noise(4, 5))


@pytest.mark.parametrize("world", [1, 2, 3, 6])
def test_shares_of_several_processes_make_the_whole_batch(world: int) -> None:
    whole = batches(6, 3).draw(2, CPU)
    shares = [
        batches(6, 3).draw(2, Machine(CPU.device, CPU.dtype, rank, world)) for rank in range(world)
    ]
    captions = tuple(caption for share in shares for caption in share.captions)
    assert captions == whole.captions
    for name in vars(whole).keys() - {"captions", "shares"}:
        joined = torch.cat([getattr(share, name) for share in shares])
        assert torch.equal(joined, getattr(whole, name)), name


def decoded_and_final_latents(pipe: StableDiffusionXLPipeline) -> tuple[Tensor, Tensor]:
    """What the pipeline hands to the VAE, and the latents that it made it from."""
    seen: dict[str, Tensor] = {}
    decode = pipe.vae.decode

    def spy(latents: Tensor, **settings: Any) -> Any:
        seen["decoded"] = latents
        return decode(latents, **settings)

    def keep(_pipe: Any, _step: int, _time: Any, values: dict[str, Tensor]) -> dict[str, Tensor]:
        seen["final"] = values["latents"]
        return values

    pipe.vae.decode = spy
    pipe("a castle", num_inference_steps=1, callback_on_step_end=keep)
    return seen["decoded"][0], seen["final"][0]


@pytest.mark.parametrize(
    "config",
    [
        {"scaling_factor": 0.13025},
        {
            "scaling_factor": 0.5,
            "latents_mean": [0.1, -2.0, 3.0, 0.4],
            "latents_std": [1.5, 0.3, 2.0, 1.0],
        },
    ],
)
def test_latents_are_the_inverse_of_what_the_pipeline_decodes(
    toy_pipe: StableDiffusionXLPipeline, config: dict[str, Any]
) -> None:
    toy_pipe.vae.register_to_config(**config)
    decoded, final = decoded_and_final_latents(toy_pipe)
    torch.testing.assert_close(normalise(toy_pipe.vae, decoded), final)


def captioned(folder: Path, caption: str = "a castle", color: str = "red") -> CaptionedImage:
    path = folder / f"{color}.png"
    Image.new("RGB", (64, 32), color).save(path)
    return CaptionedImage.of(path, caption, (32, 64))


def encode(encoder: Encoder, image: CaptionedImage) -> Example:
    return encoder.encode([(image, (View((32, 32)),))], lambda _: None)[0]


def test_example_matches_the_pipelines_own_encoding(
    toy_pipe: StableDiffusionXLPipeline, tmp_path: Path
) -> None:
    found = encode(Encoder(toy_pipe, TensorCache(tmp_path / "cache")), captioned(tmp_path))
    with torch.no_grad():
        embeds, _, pooled, _ = toy_pipe.encode_prompt("a castle", do_classifier_free_guidance=False)
        pixels = to_pixels(Image.new("RGB", (32, 32), "red"))
        latents = toy_pipe.vae.encode(pixels[None]).latent_dist.mean
    assert torch.equal(found.prompt_embeds, embeds[0])
    assert torch.equal(found.pooled, pooled[0])
    torch.testing.assert_close(found.latents, latents[0] * toy_pipe.vae.config.scaling_factor)
    assert found.time_ids.tolist() == [32, 64, 0, 16, 32, 32]


def test_fixed_size_conditioning_is_what_prompts_get(
    toy_pipe: StableDiffusionXLPipeline, tmp_path: Path
) -> None:
    encoder = Encoder(toy_pipe, TensorCache(tmp_path / "cache"), own_sizes=False)
    found = encode(encoder, captioned(tmp_path)).time_ids.tolist()
    assert tuple(found) == Framing.plain((32, 32)).time_ids


def test_cache_serves_the_same_base_and_image_and_nothing_else(
    toy_pipe: StableDiffusionXLPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, cache = captioned(tmp_path), TensorCache(tmp_path / "cache")
    first = encode(Encoder(toy_pipe, cache), image)
    files = set(cache.folder.iterdir())
    assert len(files) == 2
    monkeypatch.setattr("training.encode.encode_pixels", None)  # a call would fail
    again = encode(Encoder(toy_pipe, cache), image)
    assert torch.equal(again.latents, first.latents)
    monkeypatch.setattr("training.encode.encode_pixels", encode_pixels)
    encode(Encoder(toy_pipe, cache), captioned(tmp_path, color="blue"))
    assert len(set(cache.folder.iterdir())) == 3
    with torch.no_grad():
        for parameter in toy_pipe.vae.parameters():
            parameter.neg_()
    encode(Encoder(toy_pipe, cache), image)
    assert len(set(cache.folder.iterdir())) == 4
    with torch.no_grad():
        for parameter in toy_pipe.text_encoder.parameters():
            parameter.neg_()
    encode(Encoder(toy_pipe, cache), image)
    assert len(set(cache.folder.iterdir())) == 5
    encode(Encoder(toy_pipe, cache, texts=False), captioned(tmp_path, color="green"))
    assert len(set(cache.folder.iterdir())) == 6, "no embeddings of encoders that train"


def test_class_images_are_drawn_once_and_only_where_missing(
    toy_pipe: StableDiffusionXLPipeline, tmp_path: Path
) -> None:
    sampler = Sampler(toy_pipe, CPU, size=(32, 32), steps=2, guidance=3.0)
    prior = Prior(("a castle", "a red apple"), count=3, seed=5)
    folder = prior.folder(tmp_path, "base", sampler)
    done: list[int] = []
    images = prior.images(folder, "base", sampler, done.append)
    assert [image.caption for image in images] == ["a castle", "a red apple", "a castle"]
    assert len({image.digest for image in images}) == 3
    assert done == [3]
    kept = images[0].path.stat().st_mtime_ns
    second = to_pixels(open_image(images[1].path))
    images[1].path.unlink()
    assert prior.missing(folder) == [1]
    again = prior.images(folder, "base", sampler, done.append)
    assert done == [3, 1]
    redrawn = to_pixels(open_image(again[1].path))
    torch.testing.assert_close(redrawn, second, atol=0.02, rtol=0)
    assert again[0] == images[0]
    assert images[0].path.stat().st_mtime_ns == kept
    assert prior.folder(tmp_path, "other base", sampler) != folder
    assert Prior(prior.prompts, count=9, seed=5).folder(tmp_path, "base", sampler) == folder


def test_checkpoints_keep_the_newest_and_pass_over_broken_ones(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=2)
    with pytest.raises(RunError, match="no checkpoint"):
        checkpoints.load()
    for step in (5, 10, 15):
        checkpoints.save(step, {"step": step, "values": torch.full((2,), float(step))})
    assert checkpoints.steps() == [10, 15]
    killed = checkpoints.folder / ".step-000020.partial"
    killed.mkdir()
    (killed / "state.pt").write_bytes(b"half")
    (checkpoints.folder / "step-000025").mkdir()
    assert checkpoints.load()["step"] == 15
    checkpoints.save(20, {"step": 20})
    assert checkpoints.steps() == [15, 20]
    assert not killed.exists()


def test_broken_checkpoint_names_the_remedy(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    path = checkpoints.save(5, {"step": 5})
    (path / "state.pt").write_bytes(b"broken")
    with pytest.raises(RunError, match="Delete this folder"):
        checkpoints.load()


def test_checkpoint_without_its_state_is_written_anew(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    (tmp_path / "step-000005").mkdir()
    (tmp_path / "step-000005" / "stray").touch()
    checkpoints.save(5, {"step": 5})
    assert checkpoints.load() == {"step": 5}
    assert [path.name for path in tmp_path.rglob("*")] == ["step-000005", "state.pt"]


def test_failing_save_leaves_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(5, {"step": 5})

    def fail(*_: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        checkpoints.save(10, {"step": 10})
    assert checkpoints.steps() == [5]
    assert checkpoints.load() == {"step": 5}


def test_event_log_appends_whole_lines(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "run" / "events.jsonl")
    assert log.find("step") == []
    log.write("started", name="ink")
    log.write("step", step=1, loss=0.5)
    rows = [json.loads(line) for line in log.path.read_text().splitlines()]
    assert Counter(row["event"] for row in rows) == {"started": 1, "step": 1}
    assert rows[1]["loss"] == 0.5
    assert log.find("step") == rows[1:]
    assert log.find("finished") == []


def test_torn_line_of_the_event_log_costs_no_other(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    log.write("step", step=1)
    with log.path.open("ab") as file:
        file.write(b'{"time": "2026", "event": "st\xc3')
    log.write("step", step=2)
    assert [row["step"] for row in log.find("step")] == [1, 2]


def test_pictures_in_tiles_are_decoded_in_small_pieces(
    toy_pipe: StableDiffusionXLPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[tuple[int, ...]] = []
    toy_pipe.vae.decoder.register_forward_pre_hook(
        lambda _, inputs: decoded.append(tuple(inputs[0].shape[-2:]))
    )

    def draw(*, tiled: bool) -> tuple[int, int]:
        sampler = Sampler(toy_pipe, CPU, size=(32, 32), steps=2, guidance=3.0, tiled=tiled)
        (picture,) = sampler.draw(["a castle"], [1])
        return picture.size

    monkeypatch.setattr("training.sampling.TILE", 16)
    assert draw(tiled=True) == (32, 32)
    assert len(decoded) > 3
    assert max(map(max, decoded)) == 4
    decoded.clear()
    assert draw(tiled=False) == (32, 32), "the VAE is as it was"
    assert decoded == [(8, 8)]
