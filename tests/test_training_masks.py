"""What a mask leaves out counts as the settings say, wherever the mask comes from."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from PIL import Image
from torch.nn import functional as F
from training_toys import CPU, make_batches

from training.concepts import read_data
from training.config import Config
from training.data import Dataset
from training.encode import Encoder, TensorCache
from training.errors import DataError
from training.loss_masks import shares
from training.objective import Objective
from training.prepare import origin
from training.views import View


def save(path: Path, size: tuple[int, int] = (40, 20), color: object = "red") -> None:
    Image.new("RGB", size, color).save(path)  # type: ignore[arg-type]


def half_white(path: Path, size: tuple[int, int] = (40, 20)) -> None:
    mask = Image.new("L", size, 0)
    mask.paste(255, (0, 0, size[0] // 2, size[1]))
    mask.save(path)


def read(folder: Path, kind: str, **changes: object) -> Dataset:
    return read_data(
        Config(data=str(folder), instance_prompt="a fox", loss_mask=kind, **changes)  # type: ignore[arg-type]
    )


def test_shares_are_the_mask_in_the_latents_grid_with_a_mean_of_one() -> None:
    levels = np.random.default_rng(0).integers(0, 256, (24, 16), dtype=np.uint8)
    found = shares(Image.fromarray(levels), torch.zeros(4, 6, 4), 0.25)
    assert found.shape == (1, 6, 4)
    expected = np.empty((6, 4))
    for row in range(6):
        for column in range(4):
            cell = levels[4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
            expected[row, column] = 0.25 + 0.75 * cell.mean() / 255
    expected /= expected.mean()
    np.testing.assert_allclose(found[0].numpy(), expected, rtol=1e-5)


@pytest.mark.parametrize(("level", "unmasked", "share"), [(255, 0.0, 1), (0, 0.5, 1), (0, 0, 0)])
def test_masks_of_one_level(level: int, unmasked: float, share: float) -> None:
    found = shares(Image.new("L", (8, 8), level), torch.zeros(4, 2, 2), unmasked)
    assert torch.equal(found, torch.full((1, 2, 2), share))


def test_mask_files_are_no_images_and_belong_to_theirs(tmp_path: Path) -> None:
    for name in ("fox.png", "hare.jpg"):
        save(tmp_path / name)
    half_white(tmp_path / "fox-masklabel.png")
    half_white(tmp_path / "owl-masklabel.webp")
    found = read(tmp_path, "masklabel")
    assert [image.path.name for image in found.images] == ["fox.png", "hare.jpg"]
    assert [image.mask and image.mask.name for image in found.images] == ["fox-masklabel.png", None]
    assert any("owl-masklabel.webp was left out" in remark for remark in found.remarks)
    assert any("without a mask" in remark and "hare.jpg" in remark for remark in found.remarks)
    without = read(tmp_path, "off")
    assert [image.mask for image in without.images] == [None, None]
    assert origin("x", found)["data"] != origin("x", without)["data"]
    before = origin("x", found)
    save(tmp_path / "fox-masklabel.png", color="white")
    assert origin("x", read(tmp_path, "masklabel")) != before


def test_faults_of_masks_are_named(tmp_path: Path) -> None:
    save(tmp_path / "fox.png")
    for kind in ("masklabel", "alpha"):
        with pytest.raises(DataError, match=f"loss_mask = {kind}: no image in .* has a mask"):
            read(tmp_path, kind)
    (tmp_path / "fox-masklabel.png").write_bytes(b"broken")
    with pytest.raises(DataError, match=r"fox-masklabel\.png"):
        read(tmp_path, "masklabel")


@pytest.mark.parametrize("kind", ["masklabel", "alpha"])
@pytest.mark.parametrize("mirrored", [False, True])
def test_the_mask_is_seen_as_its_image_is(
    toy_pipe: StableDiffusionXLPipeline, tmp_path: Path, kind: str, mirrored: bool
) -> None:
    if kind == "alpha":
        image = Image.new("RGBA", (80, 40), (255, 0, 0, 0))
        image.paste((255, 0, 0, 255), (0, 0, 40, 40))
        image.save(tmp_path / "fox.png")
    else:
        save(tmp_path / "fox.png", (80, 40))
        half_white(tmp_path / "fox-masklabel.png", (20, 10))
    (image,) = read(tmp_path, kind).images
    encoder = Encoder(toy_pipe, TensorCache(tmp_path / "cache"), unmasked=0.0)
    # The whole width is seen, and the left half of it is white: mirrored the right one.
    (example,) = encoder.encode([(image, (View((16, 32), mirrored=mirrored),))], lambda _: None)
    assert example.shares is not None
    assert example.shares.shape == (1, *example.latents.shape[1:])
    columns = example.shares[0].mean(dim=0)
    if mirrored:
        columns = columns.flip(0)
    middle = len(columns) // 2
    assert columns[: middle - 1].min() > 1.8
    assert columns[middle + 1 :].max() < 0.1


def test_the_loss_is_the_weighted_mean_of_the_errors(toy_pipe: StableDiffusionXLPipeline) -> None:
    batches, objective = make_batches(toy_pipe), Objective.of(toy_pipe, CPU)
    generator = torch.Generator().manual_seed(3)
    for example in batches.instances:
        object.__setattr__(example, "shares", torch.rand(1, 8, 8, generator=generator))
    batch = batches.draw(0, CPU)
    assert batch.shares is not None
    assert torch.equal(batch.shares[-1], torch.ones(1, 8, 8)), "class images count in whole"
    with torch.no_grad():
        found = objective.loss(batch)
        noisy = objective.scheduler.add_noise(batch.latents, batch.noise, batch.timesteps)
        conditions = {"text_embeds": batch.pooled, "time_ids": batch.time_ids}
        predicted = toy_pipe.unet(
            noisy, batch.timesteps, batch.prompt_embeds, added_cond_kwargs=conditions
        ).sample
        target = objective.scheduler.get_velocity(batch.latents, batch.noise, batch.timesteps)
        expected = torch.zeros(())
        for number, share in enumerate(batch.shares):
            errors = F.mse_loss(predicted[number], target[number], reduction="none")
            expected += batch.weights[number] * (errors * share).mean()
    torch.testing.assert_close(found, expected)
