"""The loop resumes and stops as it should, and methods leave the base as it was."""

import copy
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from torch import Tensor
from training_toys import CPU, make_batches, no_gradients, settings

from shira_diffusion import Adapter, AdapterInfo, AdapterSwitcher, SparseDelta, masks
from shira_diffusion.errors import MismatchError
from shira_diffusion.fingerprint import fingerprint
from shira_diffusion.pipeline import target_weights
from training import methods
from training.batches import Batches
from training.calibration import gradients
from training.config import METHODS, SPARSE, Config
from training.errors import TrainingError
from training.loop import Loop, StepResult
from training.methods import Method
from training.methods.content import write
from training.objective import Objective

# The toy's layers are too small to share between cores: on busy ones that costs minutes.
torch.set_num_threads(1)


def train(
    pipe: StableDiffusionXLPipeline, config: Config, batches: Batches
) -> tuple[list[StepResult], Method]:
    method = methods.create(config, pipe.unet, no_gradients, None)
    loop = Loop(config, method, Objective.of(pipe, CPU), batches, CPU)
    return list(loop.run()), method


def test_accumulation_equals_one_larger_batch_without_priors(
    toy_pipe: StableDiffusionXLPipeline,
) -> None:
    batches = make_batches(toy_pipe, classes=0)
    config = settings(accumulation=2, steps=1)
    results, method = train(toy_pipe, config, batches)
    losses = []
    objective = Objective.of(toy_pipe, CPU)
    method.close()
    for index in range(2):
        losses.append(float(objective.loss(batches.draw(index, CPU))))
    assert results[0].loss == pytest.approx(sum(losses) / 2, rel=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_resumed_training_equals_uninterrupted_bit_for_bit(toy_base: Path, method: str) -> None:
    def fresh() -> StableDiffusionXLPipeline:
        return StableDiffusionXLPipeline.from_pretrained(toy_base, dtype=torch.float32)

    config = settings(method=method, rank=2, steps=6)
    pipe = fresh()
    results, whole = train(pipe, config, make_batches(pipe))

    pipe = fresh()
    first = methods.create(config, pipe.unet, no_gradients, None)
    loop = Loop(config, first, Objective.of(pipe, CPU), make_batches(pipe), CPU)
    steps = loop.run()
    losses = [next(steps).loss for _ in range(3)]
    stored = copy.deepcopy(loop.state())

    pipe = fresh()
    second = methods.create(config, pipe.unet, no_gradients, stored["method"])
    loop = Loop(config, second, Objective.of(pipe, CPU), make_batches(pipe), CPU)
    loop.restore(stored)
    losses += [result.loss for result in loop.run()]
    assert losses == [result.loss for result in results]
    for left, right in zip(second.parameters(), whole.parameters(), strict=True):
        assert torch.equal(left, right)


@pytest.mark.parametrize("method", METHODS)
def test_closing_gives_the_base_back(toy_pipe: StableDiffusionXLPipeline, method: str) -> None:
    before = {name: weight.clone() for name, weight in toy_pipe.unet.named_parameters()}
    _, trained = train(toy_pipe, settings(method=method, rank=2), make_batches(toy_pipe))
    trained.close()
    after = dict(toy_pipe.unet.named_parameters())
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], weight) for name, weight in after.items())


@pytest.mark.parametrize("mask", ["grad", "snip"])
def test_gradient_masks_take_the_largest_scores(
    toy_pipe: StableDiffusionXLPipeline, mask: str
) -> None:
    batches, objective = make_batches(toy_pipe), Objective.of(toy_pipe, CPU)
    unet = toy_pipe.unet.requires_grad_(False)
    found = gradients(target_weights(unet, ["attention"]), objective, batches, 2, CPU)
    assert not any(parameter.requires_grad for parameter in unet.parameters())
    weights = target_weights(unet, ["attention"])
    for weight in weights.values():
        weight.requires_grad_(True)
    for index in range(2):
        objective.loss(batches.draw(index, CPU, purpose="calibration")).backward()
    for name, weight in weights.items():
        torch.testing.assert_close(found[name], weight.grad)
        weight.grad = None
    method = methods.create(settings(mask=mask, density=0.1), unet, lambda _: found, None)
    indices = method.state()["indices"]
    for name, weight in weights.items():
        score = found[name].abs() if mask == "grad" else (found[name] * weight.detach()).abs()
        k = masks.count(weight.numel(), 0.1)
        chosen = indices[name]
        assert set(chosen.tolist()) == set(score.flatten().topk(k).indices.tolist())


@pytest.mark.parametrize("mask", masks.KINDS)
def test_a_global_budget_is_hit_exactly(toy_pipe: StableDiffusionXLPipeline, mask: str) -> None:
    unet = toy_pipe.unet
    weights = target_weights(unet, ["attention"])
    # Other gradients in every weight, so that a score has its favourites.
    found = {
        name: weight.detach().roll(1) * (1 + number % 3)
        for number, (name, weight) in enumerate(weights.items())
    }
    config = settings(mask=mask, budget="global", density=0.03)
    chosen = methods.create(config, unet, lambda _: found, None).state()["indices"]
    total = round(0.03 * sum(weight.numel() for weight in weights.values()))
    assert sum(indices.numel() for indices in chosen.values()) == total
    if mask in masks.SCORED:
        every, kept = [], []
        for name, weight in weights.items():
            score = masks.score(mask, weight, found[name]).flatten()
            every.append(score)
            kept.append(score[chosen[name].long()] if name in chosen else score[:0])
        best = torch.cat(every).topk(total).values
        assert torch.equal(torch.cat(kept).sort(descending=True).values, best)


@pytest.mark.parametrize("method", METHODS)
def test_only_the_blocks_asked_for_are_changed(
    toy_pipe: StableDiffusionXLPipeline, tmp_path: Path, method: str
) -> None:
    blocks = ("mid_block", "up_blocks.0")
    config = settings(method=method, blocks=blocks, density=0.3, rank=2)
    created = methods.create(config, toy_pipe.unet, no_gradients, None)
    objective = Objective.of(toy_pipe, CPU, mixed=method == "lora")
    for _ in Loop(config, created, objective, make_batches(toy_pipe), CPU).run():
        pass
    write({"unet": created.content()}, tmp_path / "a.safetensors", AdapterInfo("x", method=method))
    created.close()
    inside = target_weights(toy_pipe.unet, config.targets, blocks)
    assert len(inside) < len(target_weights(toy_pipe.unet, config.targets))
    changed = Adapter.load(tmp_path / "a.safetensors").deltas
    assert changed.keys() == {f"unet.{name}" for name in inside}


@pytest.mark.parametrize("budget", ["layer", "global"])
@pytest.mark.parametrize("mask", ["struct", "rand", "sara"])
def test_what_other_adapters_have_is_avoided(
    toy_pipe: StableDiffusionXLPipeline, tmp_path: Path, mask: str, budget: str
) -> None:
    paths: list[str] = []
    seen: dict[str, set[int]] = {}
    for number in range(3):
        config = settings(mask=mask, budget=budget, density=0.1, avoid=tuple(paths))
        method = methods.create(config, toy_pipe.unet, no_gradients, None)
        for name, indices in method.state()["indices"].items():
            assert seen.setdefault(name, set()).isdisjoint(indices.tolist())
            seen[name].update(indices.tolist())
        paths.append(str(tmp_path / f"{number}.safetensors"))
        write({"unet": method.content()}, Path(paths[-1]), AdapterInfo("x"))
        method.close()
    entries = sum(
        weight.numel() for weight in target_weights(toy_pipe.unet, ["attention"]).values()
    )
    assert sum(map(len, seen.values())) == pytest.approx(0.3 * entries, rel=0.01)


def test_avoiding_an_adapter_of_another_base_is_refused(
    toy_pipe: StableDiffusionXLPipeline, tmp_path: Path
) -> None:
    name = next(iter(target_weights(toy_pipe.unet, ["attention"])))
    delta = SparseDelta(torch.tensor([0], dtype=torch.int32), torch.ones(1), (1, 1))
    path = tmp_path / "other.safetensors"
    Adapter({f"unet.{name}": delta}, AdapterInfo("other")).save(path)
    with pytest.raises(MismatchError, match=r"avoid.*other\.safetensors.*\(1, 1\)"):
        methods.create(settings(avoid=(str(path),)), toy_pipe.unet, no_gradients, None)


def test_adapters_of_other_names_have_other_random_masks(
    toy_pipe: StableDiffusionXLPipeline,
) -> None:
    def places(name: str) -> Tensor:
        config = settings(name=name, density=0.1)
        indices = methods.create(config, toy_pipe.unet, no_gradients, None).state()["indices"]
        return torch.cat(list(indices.values()))

    assert torch.equal(places("ink"), places("ink"))
    assert not torch.equal(places("ink"), places("oil"))


@pytest.mark.parametrize("method", SPARSE)
def test_sparse_file_gives_the_trained_model(
    toy_pipe: StableDiffusionXLPipeline, tmp_path: Path, method: str
) -> None:
    info = AdapterInfo(name="x", base_fingerprint={"unet": fingerprint(toy_pipe.unet)})
    config = settings(method=method, density=0.2, rank=4)
    _, trainer = train(toy_pipe, config, make_batches(toy_pipe))
    trained = {name: weight.clone() for name, weight in toy_pipe.unet.named_parameters()}
    write({"unet": trainer.content()}, tmp_path / "adapter.safetensors", info)
    trainer.close()
    adapter = Adapter.load(tmp_path / "adapter.safetensors")
    assert adapter.density == pytest.approx(0.2, rel=0.05)
    switcher = AdapterSwitcher(toy_pipe)
    switcher.add("x", adapter)
    switcher.set({"x": 1.0})
    moved = 0
    for name, weight in toy_pipe.unet.named_parameters():
        torch.testing.assert_close(weight, trained[name], rtol=0, atol=2e-5)
    switcher.clear()
    for name, weight in toy_pipe.unet.named_parameters():
        moved += int((weight - trained[name]).abs().max() > 1e-3)
    assert moved


@pytest.mark.parametrize("clip", [0.0, 0.5])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_bad_gradient_of_a_good_loss_stops_before_it_is_applied(
    toy_pipe: StableDiffusionXLPipeline, monkeypatch: pytest.MonkeyPatch, clip: float, bad: float
) -> None:
    accumulate = Loop._accumulate

    def spoilt(self: Loop) -> float:
        loss = accumulate(self)
        self._values[0].grad[0] = bad
        return loss

    monkeypatch.setattr(Loop, "_accumulate", spoilt)
    config = settings(clip=clip)
    method = methods.create(config, toy_pipe.unet, no_gradients, None)
    before = [value.detach().clone() for value in method.parameters()]
    loop = Loop(config, method, Objective.of(toy_pipe, CPU), make_batches(toy_pipe), CPU)
    with pytest.raises(TrainingError, match=r"gradient's norm became (nan|inf) at step 1"):
        next(loop.run())
    for left, right in zip(before, method.parameters(), strict=True):
        assert torch.equal(left, right)


def test_diverging_training_stops_with_a_remedy(toy_pipe: StableDiffusionXLPipeline) -> None:
    with pytest.raises(TrainingError, match="Set a lower lr than 1e\\+30"):
        train(toy_pipe, settings(lr=1e30), make_batches(toy_pipe))
