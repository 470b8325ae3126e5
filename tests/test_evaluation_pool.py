"""Workers: every device gets its share, and a GPU's processes see that GPU alone."""

import os
from concurrent.futures import BrokenExecutor
from pathlib import Path

import pytest

from evaluation.bench import Bench
from evaluation.errors import EvaluationError
from evaluation.pool import Processes, _visible


def surroundings(bench: Bench) -> tuple[int, str, str | None, str]:
    """Tell a worker's process, device, visible GPUs and threads."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return os.getpid(), bench.device, visible, os.environ["OMP_NUM_THREADS"]


def refuse(bench: Bench) -> None:
    raise ValueError("no")


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


def test_workers_that_die_are_replaced_for_a_while(tmp_path: Path) -> None:
    with Processes(2, ["cpu"], tmp_path, None) as crew:
        for _ in range(4):
            with pytest.raises(BrokenExecutor):
                crew.submit(die).result()
            if _ < 3:
                assert crew.submit(surroundings).result()[1] == "cpu"
        with pytest.raises(EvaluationError, match="fewer --workers"):
            crew.submit(surroundings)
