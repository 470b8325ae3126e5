"""The judges: what they are shown, what they say, and how well the ones that ship know artwork."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from emoji_xl.architecture import TOY, build_vae
from emoji_xl.artwork import Picture, read_manifest
from emoji_xl.clock import Clock
from emoji_xl.data import Artwork, on_white
from emoji_xl.judge import KINDS, Judge, Labels, Verdict, as_tensor
from emoji_xl.marking import best_log_temperature, calibrate, calibration_error, missed
from emoji_xl.report import Share
from emoji_xl.stages import MANIFEST
from emoji_xl.train_judge import (
    Lessons,
    blended_loss,
    finish_judge,
    is_held_out,
    judge_updater,
    labels_of,
    patched,
    softened,
    train_judge,
    turned,
)

JUDGES = MANIFEST.parent.parent / "models" / "emoji-judge"
COLOURS = {"red": (220, 20, 20), "green": (20, 200, 20), "blue": (20, 20, 220)}


@pytest.fixture
def artwork() -> Artwork:
    """Discs and bars in three colours: three concepts, two styles."""
    pictures, arrays = [], []
    for colour, rgb in COLOURS.items():
        for style, rows in (("square", slice(8, 24)), ("bar", slice(14, 18))):
            rgba = np.zeros((4, 32, 32), dtype=np.uint8)
            rgba[:3, rows, 8:24] = np.array(rgb)[:, None, None]
            rgba[3, rows, 8:24] = 255
            pictures.append(Picture(style, colour, colour, "train"))
            arrays.append(rgba)
    return Artwork(tuple(pictures), torch.from_numpy(np.stack(arrays)))


@pytest.mark.parametrize("name", KINDS)
def test_toy_judge_learns_and_is_read_back(name: str, artwork: Artwork, tmp_path: Path) -> None:
    judge = Judge.untrained(name, labels_of(artwork.pictures), toy=True)
    updater = judge_updater(judge, torch.device("cpu"), Clock(60.0))
    lessons = Lessons.of(artwork, judge.labels)
    run = train_judge(updater, lessons, batch=16, compiled=False)
    losses = [float(next(run)) for _ in range(30)]
    assert all(np.isfinite(losses))
    finish_judge(updater.average, lessons, build_vae(TOY))
    marks = calibrate(updater.average, artwork)
    assert marks.pictures == 6
    updater.average.save(tmp_path / name)
    again = Judge.load(tmp_path / name)
    assert again.labels == judge.labels
    images = torch.rand(3, 3, 32, 32) * 2 - 1
    seen, expected = again.look(images), updater.average.look(images)
    torch.testing.assert_close(seen.concept, expected.concept, atol=2e-2, rtol=0)
    found = missed(again, artwork)
    right = again.look(on_white(artwork.rgba)).concept_is([p.concept for p in artwork.pictures])
    assert found["concept"] == [
        p.file for p, hit in zip(artwork.pictures, right, strict=True) if not hit
    ]
    assert set(found["style"]) <= {p.file for p in artwork.pictures}


def test_the_two_judges_differ_and_are_reproducible() -> None:
    labels = Labels(("a", "b"), ("c", "d"))
    one, two = (Judge.untrained("dev", labels, toy=True) for _ in range(2))
    other = Judge.untrained("report", labels, toy=True)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert type(one.backbone) is not type(other.backbone)


def test_verdict_counts_what_was_expected() -> None:
    labels = Labels(("apple", "pear"), ("flat", "noto", "blob"))
    concept = torch.tensor([[0.9, 0.1], [0.2, 0.8]])
    style = torch.tensor([[0.1, 0.2, 0.7], [0.5, 0.3, 0.2]])
    verdict = Verdict(labels, concept, style)
    assert verdict.concept_is(["apple", "apple"]).tolist() == [True, False]
    assert verdict.style_is(["blob", "flat"]).tolist() == [True, True]


def test_pictures_become_tensors_between_minus_one_and_one() -> None:
    images = [Image.new("RGB", (4, 4), colour) for colour in ("black", "white")]
    tensor = as_tensor(images)
    assert tensor.shape == (2, 3, 4, 4)
    assert tensor[0].unique().tolist() == [-1]
    assert tensor[1].unique().tolist() == [1]


@pytest.mark.parametrize("augment", [turned, softened])
def test_augmentation_leaves_white_white(augment: object) -> None:
    torch.manual_seed(0)
    white = torch.ones(4, 3, 32, 32)
    torch.testing.assert_close(augment(white), white)  # type: ignore[operator]


def test_a_patch_covers_part_of_each_picture() -> None:
    torch.manual_seed(0)
    images = torch.full((64, 3, 32, 32), 2.0)
    changed = (patched(images) != images).any(dim=1).flatten(1)
    assert not changed.all(dim=1).any()
    assert int(changed.any(dim=1).sum()) >= 60


def test_a_blended_pictures_loss_is_that_of_its_parts() -> None:
    logits, blend = torch.randn(3, 5), torch.tensor([1.0, 0.25, 0.0])
    labels, others = torch.tensor([0, 1, 2]), torch.tensor([3, 4, 0])
    entropy = partial(F.cross_entropy, label_smoothing=0.1)
    expected = [
        entropy(logits[0], labels[0]),
        0.25 * entropy(logits[1], labels[1]) + 0.75 * entropy(logits[1], others[1]),
        entropy(logits[2], others[2]),
    ]
    found = blended_loss(logits, labels, others, blend)
    torch.testing.assert_close(found, torch.stack(expected))


def test_temperature_and_calibration_error_against_known_cases() -> None:
    torch.manual_seed(0)
    truth = torch.randint(5, (4000,))
    honest = torch.randn(4000, 5)
    honest[torch.arange(4000), truth] += 2.0
    # Logits six times as large want a temperature six times as high.
    assert best_log_temperature(honest * 6, truth) == pytest.approx(
        best_log_temperature(honest, truth) + np.log(6), abs=0.02
    )
    sure_and_right = torch.eye(3)[torch.tensor([0, 1, 2])]
    assert calibration_error(sure_and_right, torch.tensor([0, 1, 2])) == pytest.approx(0)
    assert calibration_error(sure_and_right, torch.tensor([1, 2, 0])) == pytest.approx(1)
    unsure = torch.tensor([[0.6, 0.4]] * 10)
    assert calibration_error(unsure, torch.tensor([0] * 6 + [1] * 4)) == pytest.approx(0, abs=1e-6)


def test_shares_have_wilson_intervals() -> None:
    assert Share(8, 10).value == 0.8
    # Newcombe 1998, table I: 81 of 263 gives 0.2553 to 0.3662.
    assert Share(81, 263).interval == pytest.approx((0.2553, 0.3662), abs=1e-3)
    assert Share(0, 20).interval[0] == pytest.approx(0, abs=1e-6)


def test_judges_never_see_the_pairs_that_they_are_asked_about() -> None:
    held_out = [p for p in read_manifest(MANIFEST) if is_held_out(p)]
    splits = {
        split: [p for p in held_out if p.split == split] for split in ("pair", "train", "style")
    }
    assert len(splits["pair"]) == 200
    assert 180 <= len(splits["train"]) <= 290
    assert 90 <= len(splits["style"]) <= 160
    assert sum(map(len, splits.values())) == len(held_out)


def test_the_judge_that_ships_knows_artwork() -> None:
    judge = Judge.load(JUDGES / "report")
    pictures = read_manifest(MANIFEST)
    assert judge.labels == labels_of(pictures)
    found = json.loads((JUDGES / "report" / "marks.json").read_text())
    held_out = {p.file for p in pictures if is_held_out(p)}
    for what in ("concept", "style"):
        wrong = held_out.intersection(found["missed"][what])
        assert 1 - len(wrong) / len(held_out) == pytest.approx(found["marks"][f"{what}_top1"])
        assert found["marks"][f"{what}_top1"] >= 0.85
    # As recorded, and not only so: two pictures that the examples hold.
    root = MANIFEST.parent.parent / "examples"
    files = [root / "high-contrast" / "high-contrast-abacus.png", root / "robot" / "noto-robot.png"]
    seen = judge.look(as_tensor([Image.open(file) for file in files]))
    assert seen.style_is(["high-contrast", "noto"]).all()
    assert seen.concept_is(["abacus", "robot"]).all()
