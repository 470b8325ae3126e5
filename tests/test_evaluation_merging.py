"""Rules for several adapters at once, against diffusers and PEFT doing the same."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from peft import LoraConfig
from torch import Tensor

from evaluation.errors import EvaluationError
from evaluation.loading import open_adapter
from evaluation.merging import NUMBERS, Part, applied
from evaluation.peft_changes import weighted
from evaluation.plan import CONCEPT, STYLE, Merge
from shira_diffusion import Adapter, AdapterInfo, AdapterSwitcher, fuse
from shira_diffusion.errors import SettingError
from shira_diffusion.pipeline import target_weights
from training.methods import content
from training.methods.lora import Lora

NUMBER = 0.5
STEPS = 4


def write(pipe: StableDiffusionXLPipeline, path: Path, seed: int, *, dora: bool = False) -> Path:
    """Write a LoRA or a DoRA with random factors in a few attention weights, early and late."""
    modules = [name.removesuffix(".weight") for name in target_weights(pipe.unet, ["attention"])]
    late = [name for name in modules if name.startswith("up_blocks.0")]
    some = [*modules[:4], late[-1]]
    settings = LoraConfig(r=2, lora_alpha=4, target_modules=some, use_dora=dora)
    method = Lora(pipe.unet, settings, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in method.parameters():
            value += 0.1 * torch.randn(value.shape, generator=generator)
    content.write(
        {"unet": method.content()}, path, AdapterInfo("x", method="dora" if dora else "lora")
    )
    method.close()
    return path


@pytest.fixture
def parts(tmp_path: Path, toy_pipe: StableDiffusionXLPipeline) -> list[Part]:
    files = [write(toy_pipe, tmp_path / f"{seed}.safetensors", seed) for seed in (1, 2)]
    return [
        Part(name, kind, Adapter.load(file), file)
        for name, kind, file in zip(("ink", "robot"), (STYLE, CONCEPT), files, strict=True)
    ]


def state(pipe: StableDiffusionXLPipeline) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in pipe.unet.state_dict().items()}


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def numbers(rule: str) -> dict[str, float]:
    found = dict.fromkeys(NUMBERS[rule], NUMBER)
    return found | {name: value for name, value in (("share", 0.25), ("first", 0)) if name in found}


@contextmanager
def active(pipe: StableDiffusionXLPipeline, merge: Merge, parts: list[Part]) -> Iterator[object]:
    with applied(merge, pipe, AdapterSwitcher(pipe), parts, 0.5, STEPS) as after_step:
        yield after_step


def test_every_rule_draws_and_gives_the_base_back(
    toy_pipe: StableDiffusionXLPipeline, parts: list[Part]
) -> None:
    before = state(toy_pipe)
    for rule in NUMBERS:
        with torch.no_grad(), active(toy_pipe, Merge(rule, numbers(rule)), parts) as after_step:
            toy_pipe(
                ["a castle"],
                num_inference_steps=STEPS,
                callback_on_step_end=after_step,
                output_type="latent",
            )
        assert same(before, state(toy_pipe)), rule


def test_one_adapter_alone_is_the_same_by_every_rule(
    toy_pipe: StableDiffusionXLPipeline, parts: list[Part]
) -> None:
    with active(toy_pipe, Merge(), parts[:1]):
        expected = state(toy_pipe)
    for rule in NUMBERS:
        with active(toy_pipe, Merge(rule, numbers(rule)), parts[:1]):
            assert same(state(toy_pipe), expected), rule


def test_a_sum_is_what_two_loras_make_in_diffusers(
    toy_pipe: StableDiffusionXLPipeline, parts: list[Part]
) -> None:
    with active(toy_pipe, Merge(), parts):
        ours = {name: value.clone() for name, value in toy_pipe.unet.named_parameters()}
    for part in parts:
        toy_pipe.load_lora_weights(str(part.file), adapter_name=part.name)
    toy_pipe.set_adapters([part.name for part in parts], [0.5, 0.5])
    toy_pipe.fuse_lora(components=["unet"], adapter_names=[part.name for part in parts])
    toy_pipe.unload_lora_weights()
    for name, value in toy_pipe.unet.named_parameters():
        torch.testing.assert_close(ours[name], value, atol=1e-5, rtol=0)


def test_of_late_styles_only_the_up_blocks_act(
    toy_pipe: StableDiffusionXLPipeline, parts: list[Part]
) -> None:
    before = state(toy_pipe)
    style, concept = ({n: d.to_dense() for n, d in one.adapter.deltas.items()} for one in parts)
    late = {name for name in style if name.startswith("unet.up_blocks.")}
    assert 0 < len(late) < len(style)
    with active(toy_pipe, Merge("late-styles", {"first": 0}), parts):
        for name, value in toy_pipe.unet.named_parameters():
            expected = before[name].clone()
            full = f"unet.{name}"
            for change in ([style] if full in late else []) + [concept]:
                expected += 0.5 * change.get(full, torch.zeros(()))
            torch.testing.assert_close(value, expected, atol=1e-5, rtol=0)
    nowhere = Merge("late-styles", {"first": 3})
    with pytest.raises(SettingError, match=r"'x' changes nothing from up_blocks\.3 on"):
        active(toy_pipe, nowhere, parts).__enter__()
    assert same(before, state(toy_pipe))


@pytest.mark.parametrize("rule", ["mean", "strongest", "ties"])
def test_fused_rules_are_those_of_the_library(
    rule: str, toy_pipe: StableDiffusionXLPipeline, parts: list[Part]
) -> None:
    weights = [(part.adapter, 0.5) for part in parts]
    expected = {
        "mean": lambda: fuse.mean(weights, name="x"),
        "strongest": lambda: fuse.strongest(weights, name="x"),
        "ties": lambda: fuse.ties(weights, keep=NUMBER, name="x"),
    }[rule]()
    before = state(toy_pipe)
    with active(toy_pipe, Merge(rule, numbers(rule)), parts):
        for name, value in toy_pipe.unet.named_parameters():
            delta = expected.deltas.get(f"unet.{name}")
            change = delta.to_dense() if delta is not None else torch.zeros_like(value)
            torch.testing.assert_close(value.detach(), before[name] + change, atol=1e-6, rtol=0)


def test_concept_first_brings_the_style_in_later(
    toy_pipe: StableDiffusionXLPipeline, parts: list[Part]
) -> None:
    seen = []
    switcher = AdapterSwitcher(toy_pipe)
    merge = Merge("concept-first", {"share": 0.5})
    with applied(merge, toy_pipe, switcher, parts, 0.5, STEPS) as after_step:
        assert after_step is not None
        for step in range(STEPS):
            seen.append(switcher.active)
            after_step(toy_pipe, step, None, {})
    assert seen == [{"robot": 0.5}] * 2 + [{"ink": 0.5, "robot": 0.5}] * 2


def test_pefts_cat_is_the_sum(toy_pipe: StableDiffusionXLPipeline, parts: list[Part]) -> None:
    """It keeps both ranks, so it is exact."""
    merged = weighted(toy_pipe.unet, [part.file for part in parts], [0.5, 0.7], "cat")
    expected = fuse.weighted_sum([(parts[0].adapter, 0.5), (parts[1].adapter, 0.7)], name="x")
    assert merged.deltas.keys() == expected.deltas.keys()
    for name, delta in merged.deltas.items():
        torch.testing.assert_close(
            delta.to_dense(), expected.deltas[name].to_dense(), atol=1e-5, rtol=1e-4
        )


def test_what_peft_refuses_says_why(toy_pipe: StableDiffusionXLPipeline, parts: list[Part]) -> None:
    before = state(toy_pipe)
    with pytest.raises(EvaluationError, match="PEFT cannot merge by nonsense"):
        weighted(toy_pipe.unet, [part.file for part in parts], [1.0, 1.0], "nonsense")
    assert same(before, state(toy_pipe))


def test_a_dora_is_what_diffusers_fuses(
    tmp_path: Path, toy_pipe: StableDiffusionXLPipeline
) -> None:
    file = write(toy_pipe, tmp_path / "dora.safetensors", 3, dora=True)
    before = state(toy_pipe)
    adapter = open_adapter(file, toy_pipe.unet)
    assert same(before, state(toy_pipe))
    toy_pipe.load_lora_weights(str(file), adapter_name="dora")
    toy_pipe.fuse_lora(components=["unet"])
    toy_pipe.unload_lora_weights()
    assert len(adapter.deltas) == 5
    for name, value in toy_pipe.unet.named_parameters():
        delta = adapter.deltas.get(f"unet.{name}")
        if delta is not None:
            assert float(delta.to_dense().abs().max()) > 1e-3
            expected = before[name] + delta.to_dense()
            torch.testing.assert_close(value.detach(), expected, atol=1e-5, rtol=0)
