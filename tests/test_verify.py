"""What `verify` finds: every fault by name, with a remedy, and no fault in what is fine."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from shira_diffusion import Adapter, AdapterInfo, SparseDelta, verify
from shira_diffusion.formats.checkpoint import Checkpoint
from shira_diffusion.verify import Finding

NAMES = ("unet.mid_block.attentions.0.proj_in.weight", "unet.conv_in.weight")


def weights(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        NAMES[0].removeprefix("unet."): torch.randn(6, 5, generator=generator),
        NAMES[1].removeprefix("unet."): torch.randn(4, 3, 3, 3, generator=generator),
        "conv_in.bias": torch.randn(4, generator=generator),
    }


@pytest.fixture
def base(tmp_path: Path) -> Checkpoint:
    save_file(weights(), tmp_path / "base.safetensors")
    return Checkpoint(tmp_path / "base.safetensors")


def change(shape: tuple[int, ...], size: float = 0.1) -> SparseDelta:
    places = torch.tensor([0, 3, 7], dtype=torch.int32)
    return SparseDelta(places, torch.tensor([size, -size / 2, 0.0]), shape)


def fitting(base: Checkpoint, **changes: object) -> Adapter:
    deltas = {name: change(base.shape(name)) for name in NAMES}
    info = AdapterInfo("toy", base_model="toy-xl", base_fingerprint=dict(base.fingerprints()))
    return Adapter(**{"deltas": deltas, "info": info} | changes)


def wrong(findings: list[Finding]) -> list[Finding]:
    return [one for one in findings if one.wrong]


def found(adapter: Adapter, base: Checkpoint) -> list[Finding]:
    return [*verify.examine(adapter), *verify.compare(adapter, base, base.fingerprints())]


def test_what_fits_has_no_fault(base: Checkpoint) -> None:
    findings = found(fitting(base), base)
    assert wrong(findings) == []
    assert not any(one.remedy for one in findings)
    largest = max(0.1 / float(one.abs().max()) for one in list(weights().values())[:2])
    assert any(f"{largest:.3g} times" in one.what for one in findings)


def test_another_precision_is_the_same_base(base: Checkpoint, tmp_path: Path) -> None:
    halves = {name: one.half() for name, one in load_file(base.path).items()}
    save_file(halves, tmp_path / "half.safetensors")
    assert wrong(found(fitting(base), Checkpoint(tmp_path / "half.safetensors"))) == []


def renamed(one: Adapter) -> Adapter:
    deltas = dict(one.deltas)
    deltas["unet.mid_block.attentions.0.proj_inn.weight"] = deltas.pop(NAMES[0])
    return Adapter(deltas, one.info)


def reshaped(one: Adapter) -> Adapter:
    return Adapter({**one.deltas, NAMES[0]: change((5, 6))}, one.info)


def diverged(one: Adapter) -> Adapter:
    return Adapter({**one.deltas, NAMES[1]: change((4, 3, 3, 3), 1000.0)}, one.info)


def elsewhere(one: Adapter) -> Adapter:
    return one.for_base({"unet": "12ab" * 16})


FAULTS: dict[str, tuple[Callable[[Adapter], Adapter], str]] = {
    "name": (renamed, "lacks 1 of the 2 weights"),
    "shape": (reshaped, "(5, 6) here and (6, 5) in the base"),
    "size": (diverged, NAMES[1]),
    "base": (elsewhere, "made for the base 12ab12ab12ab"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_found_alone(fault: str, base: Checkpoint) -> None:
    make, words = FAULTS[fault]
    faults = wrong(found(make(fitting(base)), base))
    assert len(faults) == 1
    assert words in faults[0].what
    assert faults[0].remedy


def test_all_faults_are_found_together(base: Checkpoint) -> None:
    adapter = elsewhere(diverged(reshaped(fitting(base))))
    assert len(wrong(found(adapter, base))) == 3
    renamed_too = renamed(diverged(elsewhere(fitting(base))))
    assert len(wrong(found(renamed_too, base))) == 3


def test_the_nearest_name_is_told(base: Checkpoint) -> None:
    assert NAMES[0] in wrong(found(renamed(fitting(base)), base))[0].what


def test_a_part_that_the_base_lacks(base: Checkpoint) -> None:
    info = AdapterInfo("toy", base_fingerprint={"text_encoder": "12ab"})
    faults = wrong(found(fitting(base, info=info), base))
    assert "no such part" in faults[0].what


def test_an_adapter_that_does_nothing(base: Checkpoint) -> None:
    zeros = {name: change(base.shape(name), 0.0) for name in NAMES}
    assert "changes nothing" in wrong(verify.examine(fitting(base, deltas=zeros)))[0].what
    assert "changes nothing" in wrong(verify.examine(fitting(base, deltas={})))[0].what


def test_an_unknown_base_is_a_note(base: Checkpoint) -> None:
    findings = verify.examine(fitting(base, info=AdapterInfo("toy")))
    assert wrong(findings) == []
    assert "shira tag" in findings[-1].remedy
