"""What the benchmarks share: order of the rounds, medians, the JSON file and the picture."""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from benchmarks import file, forward, models, plot, switch
from benchmarks.measure import Case, Row, measure
from benchmarks.report import Report, machine, ratio
from shira_diffusion import AdapterSwitcher

CPU = torch.device("cpu")


def test_rounds_run_in_turn_and_preparing_is_not_timed() -> None:
    calls: list[str] = []

    def noted(name: str) -> Callable[[], None]:
        return lambda: calls.append(name)

    cases = [
        Case("a", noted("a"), noted("prepare a")),
        Case("b", noted("b"), lambda: time.sleep(0.02)),
        Case("slow", lambda: time.sleep(0.02)),
    ]
    rows = measure(cases, CPU, rounds=4, warm_up=1)
    assert calls == ["prepare a", "a", "b"] * 5
    medians = {row.name: row.median_ms for row in rows}
    assert medians["a"] < medians["slow"]
    assert medians["b"] < 10 < 20 <= medians["slow"]
    assert all(row.low_ms <= row.median_ms <= row.high_ms and row.rounds == 4 for row in rows)


def test_a_report_in_words_and_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [Row("ours", 2.0, 1.5, 2.5, 9), Row("peer", 30.0, 29.0, 33.0, 9)]
    report = Report(machine(CPU), rows, {"peer_over_ours": ratio(rows, "peer", "ours")})
    report.show()
    assert "peer_over_ours: 15.000" in capsys.readouterr().out
    report.write(tmp_path / "result.json")
    content = json.loads((tmp_path / "result.json").read_text())
    assert content["ratios"] == {"peer_over_ours": 15.0}
    assert [row["median_ms"] for row in content["rows"]] == [2.0, 30.0]
    assert content["machine"]["torch"] == torch.__version__
    figure = plot.drawn(content, "A title", log=True)
    assert [bar.get_width() for bar in figure.axes[0].patches] == [2.0, 30.0]


def test_an_adapter_of_the_benchmarks_touches_one_percent_of_the_attention() -> None:
    unet = models.unet_in_use(CPU)
    adapter = models.sparse_adapter(models.attention(unet), 0)
    assert adapter.density == pytest.approx(0.01, rel=1e-3)
    inputs = models.forward_inputs(unet)
    with torch.no_grad():
        (base,) = unet(**inputs)
        switcher = AdapterSwitcher(unet)
        switcher.add("a", adapter)
        with switcher.using({"a": 1.0}):
            assert not torch.equal(unet(**inputs)[0], base)
        assert torch.equal(unet(**inputs)[0], base)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("main", "wanted"),
    [
        (switch.main, "lora_r64_over_ours"),
        (forward.main, "ours, 1 active / base"),
        (file.main, "live, LoRA r64, diffusers / ours"),
    ],
    ids=["switch", "forward", "file"],
)
def test_each_benchmark_ends(
    main: Callable[[], None], wanted: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = tmp_path / "result.json"
    monkeypatch.setattr(sys, "argv", ["benchmark", "--device", "cpu", "--json", str(result)])
    main()
    content = json.loads(result.read_text())
    assert content["ratios"][wanted] > 0
    assert all(row["median_ms"] > 0 for row in content["rows"])
