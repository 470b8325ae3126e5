"""The loop benchmark divides like by like, and both sides' steps are seen from outside."""

import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from benchmarks import loop_transforms
from benchmarks.loop_base import write_images
from benchmarks.loop_result import LoopResult
from benchmarks.train_loop import WARM_UP, Work, names, ratios, row
from benchmarks.train_step import TrainingRow

# The part of the script's face that is watched: a bar that hears of each step.
SCRIPT = """
import sys, time
from tqdm.auto import tqdm
assert "--rank" in sys.argv and sys.argv[sys.argv.index("--rank") + 1] == "16", sys.argv
bar = tqdm(range(100))
for step in range(100):
    time.sleep(0.02 if step > 5 else 0.001)
    bar.update(1)
    bar.set_postfix(loss=1.0)
raise AssertionError("nobody ended this after the last step")
"""


def test_a_step_is_from_end_to_end_and_the_warm_up_is_left_out() -> None:
    ends = [0.0, *(9.0 + number for number in range(WARM_UP)), 100.0, 102.0, 104.5]
    result = LoopResult(ends, allocated=3.0)
    assert result.seconds(WARM_UP) == [pytest.approx(100.0 - 13.0), 2.0, 2.5]
    assert row("ours", LoopResult([*ends, 107.0], 3.0)).median_ms == 2500.0


def test_ratios_are_of_rows_with_the_same_checkpointing() -> None:
    rows = [
        TrainingRow("ours", 100.0, 1.0, 1.0, 3, 8.0),
        TrainingRow("peer, lora r64", 180.0, 1.0, 1.0, 3, 12.0),
        TrainingRow("ours, checkpointing", 200.0, 1.0, 1.0, 3, None),
        TrainingRow("peer, lora r64, checkpointing", 500.0, 1.0, 1.0, 3, 6.0),
    ]
    assert ratios(rows) == {
        "peer, lora r64 / ours": 1.8,
        "peer, lora r64 / ours, memory": 1.5,
        "peer, lora r64, checkpointing / ours": 2.5,
    }
    assert {row.name for row in rows} <= set(names(scripted=True))


def test_both_loops_are_timed_from_outside(tmp_path: Path) -> None:
    script = tmp_path / "peer.py"
    script.write_text(SCRIPT)
    base = Path(__file__).parents[1] / "models" / "emoji-xl"
    work = Work(torch.device("cpu"), base, tmp_path / "images", tmp_path, 8, script)
    write_images(work.images, work.side)
    peer = work.run("peer, lora r16")
    assert peer.rounds == 3
    assert peer.median_ms >= 20
    ours = work.run("ours, checkpointing")
    assert (ours.rounds, ours.peak_gb) == (3, None)
    assert ours.median_ms > 0


def test_transforms_stand_in_for_torchvisions(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("torchvision", "torchvision.transforms", "torchvision.transforms.functional"):
        monkeypatch.setitem(sys.modules, name, sys.modules.get(name))
    loop_transforms.install()
    from torchvision import transforms
    from torchvision.transforms.functional import crop

    image = Image.new("RGB", (40, 20), (255, 0, 0))
    scaled = transforms.Resize(10, interpolation=transforms.InterpolationMode.LANCZOS)(image)
    assert scaled.size == (20, 10)
    assert transforms.CenterCrop(8)(scaled).size == (8, 8)
    top, left, height, width = transforms.RandomCrop(10).get_params(scaled, (10, 10))
    assert (top, height, width) == (0, 10, 10)
    assert 0 <= left <= 10
    to_pixels = transforms.Compose([transforms.ToTensor(), transforms.Normalize([0.5], [0.5])])
    pixels = to_pixels(crop(scaled, 0, 0, 4, 6))
    assert pixels.shape == (3, 4, 6)
    assert pixels[:, 0, 0].tolist() == [1.0, -1.0, -1.0]
