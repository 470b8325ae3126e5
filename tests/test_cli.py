"""The command line: what each command does, says and returns, on what ships."""

import json
import math
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from shira_diffusion import Adapter, AdapterInfo, SparseDelta, cli, fuse, metrics
from shira_diffusion.cli import COMMANDS, main
from shira_diffusion.formats.checkpoint import Checkpoint
from shira_diffusion.lowrank import DoraDelta
from shira_diffusion.relabel import relabel

ROOT = Path(__file__).parent.parent
BASE = ROOT / "models" / "emoji-xl"
ROBOT, INK = (
    ROOT / "adapters" / name / "adapter.safetensors" for name in ("robot", "high-contrast")
)
LORA = ROOT / "adapters" / "robot-lora" / "adapter.safetensors"
TURNED = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"

Call = Callable[..., tuple[int, Any, str]]


@pytest.fixture
def shira(capsys: pytest.CaptureFixture[str]) -> Call:
    """Call a command with --json; returns its exit code, the facts and what went to stderr."""

    def call(*arguments: object) -> tuple[int, Any, str]:
        code = main([*map(str, arguments), "--json"])
        said = capsys.readouterr()
        return code, json.loads(said.out), said.err

    return call


def toy(name: str = "toy", **deltas: SparseDelta) -> Adapter:
    return Adapter({key.replace("__", "."): one for key, one in deltas.items()}, AdapterInfo(name))


def change(indices: list[int], values: list[float], shape: tuple[int, ...]) -> SparseDelta:
    return SparseDelta(torch.tensor(indices, dtype=torch.int32), torch.tensor(values).half(), shape)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda one: one.name)
def test_every_example_is_a_call_that_works(command: cli.Command) -> None:
    lines = command.examples.strip().splitlines()
    assert len(lines) >= 3
    for line in lines:
        words = shlex.split(line.partition("|")[0])
        assert words[:2] == ["shira", command.name]
        assert cli.parser().parse_args(words[1:]).command is command


@pytest.mark.parametrize("command", COMMANDS, ids=lambda one: one.name)
def test_help_teaches(command: cli.Command, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([command.name, "--help"])
    assert stop.value.code == 0
    said = capsys.readouterr().out
    assert "examples:" in said
    assert "exit codes:" in said
    assert max(map(len, command.description.splitlines())) < 90


def test_a_wrong_call_is_usage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["inspect"])
    assert stop.value.code == 2
    assert main(["tag", str(ROBOT)]) == 2
    assert "nothing to change" in capsys.readouterr().err


def test_inspect_counts_what_is_there(shira: Call) -> None:
    code, facts, _ = shira("inspect", ROBOT)
    deltas = Adapter.load(ROBOT).deltas
    values = torch.cat([delta.values.double() for delta in deltas.values()])
    assert code == 0
    assert facts["info"]["trigger_words"] == ["robot"]
    assert facts["total"]["weights"] == len(facts["layers"]) == len(deltas)
    assert facts["total"]["entries"] == values.numel()
    assert facts["total"]["rms"] == pytest.approx(float(values.square().mean().sqrt()))
    assert facts["total"]["largest"] == float(values.abs().max())
    for layer in facts["layers"]:
        assert layer["density"] == pytest.approx(deltas[layer["name"]].density)
    assert sum(facts["histogram"].values()) == int((values != 0).sum())


def test_the_histogram_is_by_half_decades(shira: Call, tmp_path: Path) -> None:
    values = [0.0, 1e-3, 2e-3, 4e-3, -0.02, 1.0, 60000.0, 6e-8]
    file = tmp_path / "toy.safetensors"
    toy(unet__w__weight=change(list(range(8)), values, (2, 8))).save(file)
    _, facts, _ = shira("inspect", file)
    expected: dict[str, int] = {}
    stored = [abs(float(torch.tensor(one).half())) for one in values]
    for size in filter(None, stored):
        start = 10 ** (math.floor(2 * math.log10(size)) / 2)
        label = f"{start:.1e}".replace("e-0", "e-").replace("e+0", "e+")
        expected[label] = expected.get(label, 0) + 1
    assert {key: one for key, one in facts["histogram"].items() if one} == expected
    assert facts["total"]["zeros"] == 1


def test_inspect_is_readable(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(ROBOT), "--with", str(INK), str(LORA)]) == 0
    said = capsys.readouterr().out
    shared = metrics.overlap(Adapter.load(ROBOT), Adapter.load(INK))
    assert f"{100 * shared:.3g} % of the smaller one's entries" in said
    assert "unet.mid_block " in said
    assert "####" in said
    assert max(map(len, said.splitlines())) < 300


@pytest.fixture
def dora(tmp_path: Path) -> Path:
    """The shipped LoRA with PEFT's magnitude for one layer: the norms of the base's rows."""
    from safetensors.torch import load_file, save_file

    tensors = {key: one for key, one in load_file(LORA).items() if key.startswith(TURNED)}
    weight = Checkpoint(BASE).read(f"{TURNED}.weight").float()
    tensors[f"{TURNED}.lora_magnitude_vector.weight"] = weight.norm(dim=1)
    save_file(tensors, tmp_path / "dora.safetensors")
    return tmp_path / "dora.safetensors"


def test_a_dora_is_inspected_with_its_base(shira: Call, dora: Path) -> None:
    code, facts, _ = shira("inspect", dora)
    assert code == 1
    assert "base" in facts["error"]
    code, facts, _ = shira("inspect", dora, "--base", BASE)
    assert code == 0
    assert facts["total"]["entries"] == Checkpoint(BASE).read(f"{TURNED}.weight").numel()


def test_a_dora_goes_with_its_base_where_loras_go(shira: Call, dora: Path) -> None:
    name, out = f"{TURNED}.weight", dora.with_name("out.safetensors")
    made = Adapter.load(dora).deltas[name]
    assert isinstance(made, DoraDelta)
    wanted = made.change(Checkpoint(BASE).read(name))
    for command in (
        ("convert", dora, out, "--to", "diff", "--dtype", "fp32"),
        ("convert", dora, out, "--to", "lora", "--rank", min(wanted.shape), "--dtype", "fp32"),
        ("fuse", dora, "-o", out, "--dtype", "fp32"),
    ):
        code, facts, _ = shira(*command)
        assert (code, "base" in facts["error"]) == (1, True)
        assert shira(*command, "--base", BASE)[0] == 0
        found = Adapter.load(out).deltas[name].to_dense()
        torch.testing.assert_close(found, wanted, atol=1e-6, rtol=0)
    # Entries are counted one by one: native takes a DoRA at a density alone.
    assert shira("convert", dora, out, "--base", BASE)[0] == 2
    for pair in ((ROBOT, dora), (dora, ROBOT)):
        code, facts, _ = shira("inspect", pair[0], "--with", pair[1], "--base", BASE)
        assert (code, facts["overlap"][str(pair[1])]["overlap"] > 0) == (0, True)


def test_a_dora_of_another_base_is_refused(shira: Call, dora: Path) -> None:
    mark = {"base_fingerprint": {"unet": "0" * 64}}
    relabel(dora, dora, mark, {})
    for command in (
        ("convert", dora, dora.with_name("out"), "--to", "diff"),
        ("convert", dora, dora.with_name("out"), "--density", 0.1),
        ("fuse", dora, "-o", dora.with_name("out")),
    ):
        code, facts, _ = shira(*command, "--base", BASE)
        assert (code, facts["kind"]) == (1, "MismatchError")
    assert not dora.with_name("out").exists()


def test_verify_says_that_all_is_well(shira: Call) -> None:
    code, facts, _ = shira("verify", ROBOT, LORA, "--base", BASE)
    assert code == 0
    assert facts[str(ROBOT)]["ok"]
    assert any("very base" in one["what"] for one in facts[str(ROBOT)]["findings"])
    assert len(facts[str(LORA)]["findings"]) >= 4


def test_verify_goes_on_after_a_broken_file(shira: Call, tmp_path: Path) -> None:
    data = bytearray(ROBOT.read_bytes())
    data[-100] ^= 1
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(data)
    code, facts, _ = shira("verify", broken, ROBOT)
    assert code == 1
    assert not facts[str(broken)]["ok"]
    assert "damaged" in facts[str(broken)]["findings"][0]["what"]
    assert facts[str(ROBOT)]["ok"]


def test_convert_to_peft_and_back(shira: Call, tmp_path: Path) -> None:
    _, facts, _ = shira("convert", ROBOT, tmp_path / "peft", "--to", "peft")
    padded = sum(facts["r"] * sum(one.shape) for one in Adapter.load(ROBOT).deltas.values())
    assert facts["added_entries"] == padded - Adapter.load(ROBOT).nnz
    assert abs(facts["bytes"] / facts["expected_bytes"] - 1) < 0.05
    code, facts, _ = shira("convert", tmp_path / "peft", tmp_path / "back.safetensors")
    assert code == 0
    before, after = Adapter.load(ROBOT), Adapter.load(tmp_path / "back.safetensors")
    assert before.info == after.info
    for name, one in before.entries.items():
        assert torch.equal(one.to_dense(), after.entries[name].to_dense())


@pytest.mark.parametrize("names", ["kohya", "kohya-diffusers", "diffusers"])
def test_convert_to_a_lora_tells_what_is_lost(shira: Call, tmp_path: Path, names: str) -> None:
    out = tmp_path / "lora.safetensors"
    code, facts, _ = shira("convert", ROBOT, out, "--to", "lora", "--rank", 4, "--names", names)
    assert code == 0
    before, after = Adapter.load(ROBOT), Adapter.load(out)
    whole = sum(float(one.to_dense().double().square().sum()) for one in before.deltas.values())
    lost = sum(
        float((one.to_dense().double() - after.deltas[name].to_dense().double()).square().sum())
        for name, one in before.deltas.items()
    )
    assert facts["energy_kept"] == pytest.approx(1 - lost / whole, abs=1e-4)
    assert after.info.method == "lora"
    assert abs(facts["bytes"] / facts["expected_bytes"] - 1) < 0.2


def test_a_poor_lora_is_warned_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "lora.safetensors")
    assert main(["convert", str(ROBOT), out, "--to", "lora", "--rank", "2"]) == 0
    assert "warning: that is poor" in capsys.readouterr().out
    assert main(["convert", str(LORA), out, "--to", "lora", "--rank", "2"]) == 0
    assert "warning" not in capsys.readouterr().out


def test_the_size_of_dense_changes_is_told_before(shira: Call, tmp_path: Path) -> None:
    out = tmp_path / "diff.safetensors"
    code, facts, _ = shira("convert", ROBOT, out, "--to", "diff", "--dry-run")
    assert code == 0
    assert facts["expected_bytes"] == 2 * sum(
        one.numel for one in Adapter.load(ROBOT).deltas.values()
    )
    assert list(tmp_path.iterdir()) == []
    assert shira("convert", ROBOT, out, "--to", "diff", "--names", "diffusers")[0] == 2
    _, _, said = shira("convert", ROBOT, out, "--to", "diff")
    assert "8.61 MB" in said
    assert metrics.overlap(Adapter.load(ROBOT), Adapter.load(out)) == 1.0


def test_a_lora_becomes_native_at_a_density(shira: Call, tmp_path: Path) -> None:
    out = tmp_path / "sparse.safetensors"
    code, facts, _ = shira("convert", LORA, out)
    assert (code, facts["kind"]) == (2, "SettingError")
    code, facts, _ = shira("convert", LORA, out, "--density", 0.05)
    dense, sparse = Adapter.load(LORA), Adapter.load(out)
    assert code == 0
    assert sparse.nnz == round(0.05 * dense.nnz)
    kept = sum(float(one.values.double().square().sum()) for one in sparse.entries.values())
    whole = sum(float(one.to_dense().double().square().sum()) for one in dense.deltas.values())
    assert facts["energy_kept"] == pytest.approx(kept / whole, abs=1e-3)


def test_fuse_is_the_mix(shira: Call, tmp_path: Path) -> None:
    out = tmp_path / "both=1.safetensors"
    code, facts, _ = shira("fuse", f"{ROBOT}=0.5", INK, "-o", out, "--dtype", "fp32")
    expected = fuse.weighted_sum([(Adapter.load(ROBOT), 0.5), (Adapter.load(INK), 1.0)], name="x")
    result = Adapter.load(out)
    assert code == 0
    assert facts["name"] == result.info.name == "both=1"
    for name, one in expected.entries.items():
        assert torch.equal(one.to_dense(), result.entries[name].to_dense())


def test_a_fused_lora_is_said_to_be_dense(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fuse", str(ROBOT), str(LORA), "-o", str(tmp_path / "x.safetensors")]) == 0
    assert "no longer sparse" in capsys.readouterr().out
    assert main(["fuse", str(ROBOT), str(INK), "-o", str(tmp_path / "x.safetensors")]) == 0
    assert "no longer sparse" not in capsys.readouterr().out


@pytest.mark.parametrize("method", ["mean", "strongest", "ties", "dare"])
def test_every_way_of_fusing_writes_a_file(shira: Call, tmp_path: Path, method: str) -> None:
    out = tmp_path / "fused.safetensors"
    code, facts, _ = shira("fuse", ROBOT, INK, "-o", out, "--method", method)
    assert code == 0
    assert facts["entries"] == Adapter.load(out).nnz
    assert facts["trigger_words"] == ["ink style", "robot"]


def test_bake_and_extract_are_inverse(shira: Call, tmp_path: Path) -> None:
    code, facts, _ = shira("bake", BASE, f"{ROBOT}=0.5", "-o", tmp_path / "baked")
    adapter = Adapter.load(ROBOT)
    assert (code, facts["weights_changed"]) == (0, len(adapter.deltas))
    out = tmp_path / "again.safetensors"
    code, facts, _ = shira(
        "extract", BASE, tmp_path / "baked", "-o", out, "--density", 0.03, "--targets", "attention"
    )
    assert code == 0
    assert facts["energy_kept"] == pytest.approx(1.0)
    again = Adapter.load(out)
    base = Checkpoint(BASE)
    for name, one in adapter.entries.items():
        before = base.read(name)
        after = (before.float() + 0.5 * one.to_dense().float()).to(before.dtype)
        found = again.entries[name].to_dense().float()
        assert torch.allclose(found, after.float() - before.float(), atol=1e-3)


def test_two_that_do_not_differ_give_no_adapter(shira: Call, tmp_path: Path) -> None:
    code, facts, _ = shira("extract", BASE, BASE, "-o", tmp_path / "x.safetensors")
    assert code == 1
    assert "do not differ" in facts["error"]
    assert list(tmp_path.iterdir()) == []


def test_values_beyond_a_dtype_are_refused(shira: Call, tmp_path: Path) -> None:
    out = tmp_path / "x.safetensors"
    code, facts, _ = shira("fuse", f"{ROBOT}=100000", "-o", out)
    assert code == 2
    assert "leave the range of fp16" in facts["error"]
    assert shira("fuse", f"{ROBOT}=100000", "-o", out, "--dtype", "bf16")[0] == 0
    assert shira("convert", out, out)[0] == 2
    assert Adapter.load(out).entries


def test_bake_overwrites_nothing(shira: Call, tmp_path: Path) -> None:
    code, facts, _ = shira("bake", BASE, ROBOT, "-o", tmp_path)
    assert code == 2
    assert "already" in facts["error"]


def test_bench_measures(shira: Call) -> None:
    code, facts, _ = shira("bench", "--share", 0.002, "--rounds", 5, "--rank", 4)
    assert code == 0
    assert facts["matrices"] == 4
    assert facts["changed_afterwards"]["shira"] == 0
    assert facts["changed_afterwards"]["lora"] > 0
    assert all(row["median_ms"] > 0 for row in facts["rows"])
    assert shira("bench", "--share", 2)[0] == 2


def test_errors_are_json_too(shira: Call, tmp_path: Path) -> None:
    code, facts, said = shira("inspect", tmp_path / "nothing.safetensors")
    assert code == 1
    assert facts["kind"] == "FormatError"
    assert "no such file" in facts["error"]
    assert facts["error"] in said
    code, facts, _ = shira("verify", ROBOT, "--base", tmp_path / "nothing")
    assert code == 1
    assert "no hub id" in facts["error"]


def test_a_disk_that_refuses_is_an_error(shira: Call, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    code, facts, _ = shira("convert", ROBOT, tmp_path / "file" / "x.safetensors")
    assert code == 1
    assert "cannot be written" in facts["error"]


# Stands for `pip install .` alone: torch and safetensors.
ALONE = """
import sys
for name in ("rich", "huggingface_hub", "httpx", "diffusers", "transformers", "peft", "PIL"):
    sys.modules[name] = None
from shira_diffusion.cli import main
sys.exit(main(sys.argv[1:]))
"""


def run_alone(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", ALONE, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )


def test_the_library_alone_is_enough_for_files_and_bases() -> None:
    done = run_alone("verify", ROBOT, "--base", BASE)
    assert (done.returncode, done.stderr) == (0, "")
    done = run_alone("push", ROBOT, "me/robot")
    assert done.returncode == 1
    assert "pip install 'shira-diffusion[hub]'" in done.stderr


def test_a_hub_that_is_offline_is_an_error() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "shira_diffusion", "verify", str(ROBOT), "--base", "no/where"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("shira verify: no/where: the hub cannot be reached")


def test_the_module_runs_and_survives_a_closed_pipe() -> None:
    command = f"{shlex.quote(sys.executable)} -m shira_diffusion inspect {ROBOT} --layers | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.startswith(str(ROBOT))
    assert done.stderr == ""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_leaves_no_half_file(tmp_path: Path, number: signal.Signals) -> None:
    mix = sorted((ROOT / "adapters").glob("*/adapter.safetensors"))
    command = [sys.executable, "-m", "shira_diffusion", "bake", str(BASE), *map(str, mix)]
    process = subprocess.Popen(
        [*command, "-o", str(tmp_path / "baked")],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        # Who runs the tests in the background may have told all of them to ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while process.poll() is None and not list(tmp_path.iterdir()):
        time.sleep(0.002)
    process.send_signal(number)
    _, said = process.communicate()
    assert process.returncode == 130, said
    assert "Stopped" in said
    assert list(tmp_path.iterdir()) == []
