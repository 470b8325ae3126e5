"""Aspect-ratio buckets, cuts and mirror images: what is seen, what the UNet is told, and when."""

import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps
from torch import Tensor

from training.batches import Batches, bucket_in_turn
from training.buckets import bucket_sizes, nearest
from training.config import Config
from training.data import CaptionedImage
from training.encode import Encoder, Example, TensorCache
from training.images import Framing, Size, to_pixels
from training.machine import Machine
from training.prior import shared_out
from training.views import Gaze, View

# The toy's layers are too small to share between cores: on busy ones that costs minutes.
torch.set_num_threads(1)

CPU = Machine(torch.device("cpu"), torch.float32)


def test_sdxls_buckets_are_in_its_papers_list() -> None:
    # arXiv 2307.01952, appendix I, (height, width): those of at most 1024 x 1024 pixels.
    listed = {(512, 2048), (512, 1984), (512, 1920), (576, 1792), (640, 1600), (704, 1472)}
    listed |= {(768, 1344), (832, 1216), (896, 1152), (960, 1088), (1024, 1024)}
    found = bucket_sizes(1024, 32)
    upright = {size for size in found if size[0] <= size[1]}
    assert len(upright) == 9
    assert {(512, 2048), (768, 1344), (832, 1216), (896, 1152), (1024, 1024)} <= upright & listed


@given(side=st.integers(32, 2048), multiple=st.sampled_from([8, 16, 32, 64]))
def test_buckets_are_multiples_of_about_one_area(side: int, multiple: int) -> None:
    sizes = bucket_sizes(side, multiple)
    step = multiple * max(1, round(side / 16 / multiple))
    assert len(set(sizes)) == len(sizes)
    for height, width in sizes:
        assert (width, height) in sizes
        assert height % multiple == width % multiple == 0
        if side >= step:
            assert height * width <= side * side
            assert side * side < min((height + step) * width, height * (width + step)) or (
                height == width
            )


@given(
    size=st.tuples(st.integers(1, 5000), st.integers(1, 5000)),
    side=st.sampled_from([128, 512, 1024]),
)
def test_nearest_bucket_cuts_off_the_least(size: Size, side: int) -> None:
    def kept(bucket: Size) -> float:
        """The share of the image that is left when it covers the bucket."""
        scale = max(bucket[0] / size[0], bucket[1] / size[1])
        return math.prod(bucket) / (size[0] * size[1] * scale**2)

    sizes = bucket_sizes(side, 32)
    assert kept(nearest(size, sizes)) >= max(map(kept, sizes)) - 1e-9


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("place", [(0.0, 0.0), (0.5, 0.5), (0.3, 0.8), (1.0, 1.0)])
@pytest.mark.parametrize("size", [(61, 97), (32, 64), (97, 20), (200, 200)])
def test_view_equals_a_cut_out_of_the_whole_scaled_image(
    size: Size, place: tuple[float, float], mirrored: bool
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    seen, framing = View((32, 64), place, mirrored).of(image)
    scale = max(32 / size[0], 64 / size[1])
    rows, columns = (round(length * scale) for length in size)
    source = ImageOps.mirror(image) if mirrored else image
    scaled = source.resize((columns, rows), Image.Resampling.LANCZOS)
    top, left = int((rows - 32) * place[0]), int((columns - 64) * place[1])
    cut = scaled.crop((left, top, left + 64, top + 32))
    assert framing == Framing(size, (top, left), (32, 64))
    assert np.abs(np.asarray(seen, dtype=int) - np.asarray(cut, dtype=int)).max() <= 1


def image(folder: Path, size: Size, color: str = "red") -> CaptionedImage:
    noise = np.random.default_rng(len(color)).integers(0, 256, (*size, 3), dtype=np.uint8)
    path = folder / f"{color}.png"
    Image.fromarray(noise).save(path)
    return CaptionedImage.of(path, "a castle", size)


def test_gaze_follows_the_settings(toy_pipe: StableDiffusionXLPipeline, tmp_path: Path) -> None:
    wide = image(tmp_path, (30, 120))

    def views(**settings: Any) -> tuple[View, ...]:
        return Gaze.of(Config(**settings), toy_pipe, 32).views(wide)

    assert views() == (View((32, 32)),)
    assert views(flip=True) == (View((32, 32)), View((32, 32), mirrored=True))
    (bucket,) = views(buckets=True)
    assert bucket.size[1] == 4 * bucket.size[0]
    toy_pipe.unet(
        torch.zeros(1, 4, *(length // toy_pipe.vae_scale_factor for length in bucket.size)),
        torch.tensor([1]),
        encoder_hidden_states=torch.zeros(1, 5, toy_pipe.unet.config.cross_attention_dim),
        added_cond_kwargs={
            "text_embeds": torch.zeros(
                1,
                toy_pipe.unet.config.projection_class_embeddings_input_dim
                - 6 * toy_pipe.unet.config.addition_time_embed_dim,
            ),
            "time_ids": torch.zeros(1, 6),
        },
    )
    many = views(crops=3, flip=True)
    assert len(set(many)) == 6
    assert {(view.place, view.mirrored) for view in many} == {
        (place, side) for place in {view.place for view in many} for side in (False, True)
    }
    assert views(crops=3, flip=True) == many, "a resumed run sees the same"


def test_all_views_are_encoded_with_their_own_numbers(
    toy_pipe: StableDiffusionXLPipeline, tmp_path: Path
) -> None:
    picture = image(tmp_path, (32, 64))
    views = (View((32, 32), (0.0, 0.25)), View((32, 32), (0.0, 0.25), mirrored=True))
    encoder = Encoder(toy_pipe, TensorCache(tmp_path / "cache"))
    for _ in ("computed", "from the cache"):
        (example,) = encoder.encode([(picture, views)], lambda _: None)
        assert example.time_ids.tolist() == [32, 64, 0, 8, 32, 32]
        (mirrored,) = example.others
        assert mirrored.time_ids.tolist() == [32, 64, 0, 8, 32, 32]
        whole = Image.open(picture.path)
        for found, seen in (
            (example, whole.crop((8, 0, 40, 32))),
            (mirrored, ImageOps.mirror(whole).crop((8, 0, 40, 32))),
        ):
            with torch.no_grad():
                latents = toy_pipe.vae.encode(to_pixels(seen)[None]).latent_dist.mean[0]
            torch.testing.assert_close(found.latents, latents * toy_pipe.vae.config.scaling_factor)


@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    seed=st.integers(0, 3),
    rounds=st.integers(1, 3),
)
def test_buckets_take_turns_by_how_many_images_they_have(
    sizes: list[int], seed: int, rounds: int
) -> None:
    turns = [
        bucket_in_turn(sizes, place, seed=seed, name="x") for place in range(rounds * sum(sizes))
    ]
    for bucket, size in enumerate(sizes):
        assert [turn for owner, turn in turns if owner == bucket] == list(range(rounds * size))


def example(number: int, shape: Size, views: int = 1) -> Example:
    """An example that says its number; its views add a tenth each."""

    def view(share: float) -> Example:
        value = number + share
        fill = [torch.full(size, value) for size in ((4, *shape), (5, 6), (7,), (6,))]
        return Example(*fill)

    first, *others = (view(index / 10) for index in range(views))
    return Example(first.latents, first.prompt_embeds, first.pooled, first.time_ids, tuple(others))


SHAPES = [(8, 8)] * 5 + [(4, 16)] * 3 + [(16, 4)]


def batches(views: int = 1) -> Batches:
    return Batches(
        [example(number, shape, views) for number, shape in enumerate(SHAPES)],
        [example(100 + n, shape) for n, shape in enumerate([*set(SHAPES)] * 2)],
        batch=2,
        class_batch=1,
        class_weight=0.5,
        train_timesteps=1000,
        seed=3,
    )


def numbers(batch: Any) -> list[int]:
    return [int(value) for value in batch.latents[:2, 0, 0, 0]]


def test_no_batch_mixes_shapes_and_every_image_is_seen_as_often() -> None:
    made = batches()
    seen: Counter[int] = Counter()
    for index in range(4 * len(SHAPES)):
        batch = made.draw(index, CPU)
        assert len(batch.latents) == 3
        assert {SHAPES[number] for number in numbers(batch)} == {tuple(batch.latents.shape[2:])}
        assert batch.latents[2, 0, 0, 0] >= 100
        assert batch.noise.shape == batch.latents.shape
        seen.update(numbers(batch))
    assert seen == dict.fromkeys(range(len(SHAPES)), 8)


@pytest.mark.parametrize("world", [2, 3])
def test_batches_of_buckets_depend_on_the_index_alone_and_are_shared(world: int) -> None:
    backwards = {index: batches(3).draw(index, CPU) for index in reversed(range(12))}
    for index, whole in backwards.items():
        shares = [
            batches(3).draw(index, Machine(CPU.device, CPU.dtype, rank, world))
            for rank in range(world)
        ]
        for name in vars(whole).keys() - {"captions", "shares"}:
            joined = torch.cat([getattr(share, name) for share in shares])
            assert torch.equal(joined, getattr(whole, name)), name


def test_views_are_drawn_anew_each_time_with_their_numbers() -> None:
    made = batches(views=4)
    seen: dict[int, Counter[float]] = {}
    for index in range(40 * len(SHAPES)):
        batch = made.draw(index, CPU)
        values: Tensor = batch.latents[:2, 0, 0, 0]
        assert torch.equal(values, batch.time_ids[:2, 0])
        for value in values.tolist():
            seen.setdefault(int(value), Counter())[round(value % 1, 1)] += 1
    for counts in seen.values():
        assert set(counts) == {0.0, 0.1, 0.2, 0.3}
        assert min(counts.values()) > 5, "of 80 draws, 20 are expected"


def test_class_images_are_shared_out_by_the_images_sizes() -> None:
    square, wide = (8, 8), (4, 16)
    assert shared_out(20, [square] * 3 + [wide], ["a", "b"]) == {square: 15, wide: 5}
    assert shared_out(20, [square] * 39 + [wide], ["a", "b"]) == {square: 20, wide: 2}
    assert shared_out(1, [square, wide], ["a", "b"]) == {square: 1, wide: 1}
