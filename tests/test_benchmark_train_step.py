"""The training benchmark runs on a CPU, and divides what it says it divides."""

import pytest
import torch

from benchmarks.train_methods import METHODS
from benchmarks.train_step import MODES, RATIOS, Setup, TrainingRow, ratios, setups


def test_every_ratio_is_of_rows_that_are_measured() -> None:
    names = {setup.name for setup in setups(list(METHODS), MODES)}
    assert names >= {name for pair in RATIOS.values() for name in pair}


def test_ratios_are_of_time_and_memory() -> None:
    rows = [
        TrainingRow("ours, eager", 2.0, 2.0, 2.0, 3, 6.0),
        TrainingRow("lora_r64, eager", 4.0, 4.0, 4.0, 3, 8.0),
        TrainingRow("peft_shira, eager", 8.0, 8.0, 8.0, 3, None),
    ]
    assert ratios(rows) == {
        "ours_over_lora_r64": 0.5,
        "memory_ours_over_lora_r64": 0.75,
        "ours_over_peft_shira": 0.25,
    }


@pytest.mark.parametrize("method", ["ours", "frozen"])
def test_it_takes_steps(method: str) -> None:
    row = Setup(method, "eager", True).run(torch.device("cpu"), rounds=3)
    assert row.name == f"{method}, eager, checkpointing"
    assert 0 < row.low_ms <= row.median_ms <= row.high_ms
    assert row.peak_gb is None
