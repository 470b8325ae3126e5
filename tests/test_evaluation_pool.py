"""Workers: every device gets its share, and a GPU's processes see that GPU alone."""

import os
import time
from concurrent.futures import BrokenExecutor
from pathlib import Path

import pytest

from evaluation import pool
from evaluation.bench import Bench
from evaluation.errors import EvaluationError
from evaluation.pool import Processes, _visible


def surroundings(bench: Bench) -> tuple[int, str, str | None, str]:
    """Tell a worker's process, device, visible GPUs and threads."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return os.getpid(), bench.device, visible, os.environ["OMP_NUM_THREADS"]


def refuse(bench: Bench) -> None:
    raise ValueError("no")


def wait(bench: Bench) -> str:
    while not (bench.work / "enough").exists():
        time.sleep(0.01)
    return "waited"


def die(_: Bench) -> None:
    os._exit(9)


def test_workers_share_the_devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    with Processes(2, ["cpu", "meta"], tmp_path, None) as crew:
        assert crew.size == 2
        found = [crew.submit(surroundings) for _ in range(2)]
        told = [future.result() for future in found]
        assert {device for _, device, _, _ in told} == {"cpu", "meta"}
        assert len({process for process, *_ in told}) == 2
        assert {(visible, threads) for _, _, visible, threads in told} == {("5,7", "1")}
        with pytest.raises(ValueError, match="no"):
            crew.submit(refuse).result()
    assert os.environ["OMP_NUM_THREADS"] == "3"


@pytest.mark.parametrize(
    ("known", "index", "expected"),
    [("", "1", "1"), ("", "", "0"), ("5,7", "1", "7"), ("GPU-a,GPU-b", "0", "GPU-a")],
)
def test_a_gpu_is_counted_among_the_visible_ones(
    known: str, index: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", known)
    assert _visible(index) == expected


def test_a_worker_that_dies_takes_no_other_with_it(tmp_path: Path) -> None:
    with Processes(2, ["cpu"], tmp_path, None) as crew:
        slow, bad = crew.submit(wait), crew.submit(die)
        with pytest.raises(BrokenExecutor):
            bad.result()
        assert not slow.done()
        (tmp_path / "enough").touch()
        assert slow.result() == "waited"


def test_a_worker_that_dies_is_replaced_until_it_only_dies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "_MOST_DEATHS", 2)
    with Processes(1, ["cpu"], tmp_path, None) as crew:
        for _ in range(3):
            with pytest.raises(BrokenExecutor):
                crew.submit(die).result()
            assert crew.submit(surroundings).result()[1] == "cpu"
        for _ in range(2):
            with pytest.raises(BrokenExecutor):
                crew.submit(die).result()
        with pytest.raises(EvaluationError, match="fewer --workers"):
            crew.submit(surroundings)
