"""The benchmark of trainings beside one another does what it says on the toy base."""

import json
from pathlib import Path

import pytest
from PIL import Image

from benchmarks.train_beside import main


@pytest.mark.slow
def test_processes_are_timed_together(toy_base: Path, tmp_path: Path) -> None:
    for number, colour in enumerate(("red", "blue")):
        Image.new("RGB", (32, 32), colour).save(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.txt").write_text("a castle, ink style")
    result = tmp_path / "result.json"
    few = ["--processes", "1", "2", "--methods", "lora", "--steps", "6", "--device", "cpu"]
    main([*few, "--base", str(toy_base), "--data", str(tmp_path), "--json", str(result)])
    rows = json.loads(result.read_text())["rows"]
    assert [row["name"] for row in rows] == [
        "lora, launched, 1 at once",
        "lora, launched, 2 at once",
    ]
    assert [row["rounds"] for row in rows] == [4, 8]
    for row, count in zip(rows, (1, 2), strict=True):
        assert row["steps_a_second"] == pytest.approx(1000 * count / row["median_ms"], rel=0.01)
