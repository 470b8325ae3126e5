"""Schedules and composites: which mix each step sees, and that the base comes back."""

import threading
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from torch import Tensor, nn

from shira_diffusion.adapter import Adapter, AdapterInfo
from shira_diffusion.composite import composite
from shira_diffusion.delta import SparseDelta
from shira_diffusion.errors import SettingError, UnknownAdapterError
from shira_diffusion.schedule import alternate, phases, scheduled
from shira_diffusion.switch import AdapterSwitcher


def adapter(unet: nn.Module, seed: int) -> Adapter:
    generator = torch.Generator().manual_seed(seed)
    deltas = {}
    for name, weight in unet.named_parameters():
        if name.endswith("to_v.weight"):
            chosen = torch.rand(weight.shape, generator=generator) < 0.2
            dense = torch.randn(weight.shape, generator=generator) * chosen
            deltas[f"unet.{name}"] = SparseDelta.from_dense(dense)
    return Adapter(deltas, AdapterInfo(f"a{seed}"))


@pytest.fixture
def switcher(toy_pipe: StableDiffusionXLPipeline) -> AdapterSwitcher:
    made = AdapterSwitcher(toy_pipe)
    for name, seed in (("robot", 1), ("ink", 2)):
        made.add(name, adapter(toy_pipe.unet, seed))
    return made


def picture(pipe: StableDiffusionXLPipeline, steps: int, **more: Any) -> Tensor:
    result: Tensor = pipe(
        "a castle",
        num_inference_steps=steps,
        height=32,
        width=32,
        output_type="latent",
        generator=torch.Generator().manual_seed(3),
        **more,
    ).images
    return result


def bits(module: nn.Module) -> list[Tensor]:
    return [weight.detach().clone().view(torch.int32) for weight in module.parameters()]


def watch(pipe: StableDiffusionXLPipeline, switcher: AdapterSwitcher) -> list[Mapping[str, float]]:
    """The mix at each call of the UNet."""
    seen: list[Mapping[str, float]] = []
    pipe.unet.register_forward_pre_hook(lambda *_: seen.append(switcher.active))
    return seen


def test_phases_and_alternation() -> None:
    a, b, c = {"a": 1.0}, {"b": 1.0}, {"c": 1.0}
    one = phases((0.0, a), (0.5, b), (0.75, c))
    assert [one(step, 8) for step in range(8)] == [a, a, a, a, b, b, c, c]
    assert [one(step, 3) for step in range(3)] == [a, a, b]
    assert [one(step, 1) for step in range(1)] == [a]
    turns = alternate(a, b)
    assert [turns(step, 5) for step in range(5)] == [a, b, a, b, a]
    for shares in ([], [0.1], [0.0, 0.5, 0.5], [0.0, 1.0], [0.0, 0.6, 0.4]):
        with pytest.raises(SettingError, match="must rise from 0"):
            phases(*((share, a) for share in shares))
    with pytest.raises(SettingError, match="nothing to alternate"):
        alternate()


def test_each_step_sees_its_mix(
    toy_pipe: StableDiffusionXLPipeline, switcher: AdapterSwitcher
) -> None:
    base = bits(toy_pipe.unet)
    plain = picture(toy_pipe, 5)
    seen = watch(toy_pipe, switcher)
    steps: list[int] = []

    def then(_pipe: Any, step: int, _time: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        steps.append(step)
        return tensors

    robot, both = {"robot": 1.0}, {"robot": 1.0, "ink": 0.5}
    switcher.set({"ink": 0.25})
    with scheduled(switcher, phases((0.0, robot), (0.4, both)), 5, then=then) as callback:
        changed = picture(toy_pipe, 5, callback_on_step_end=callback)
    assert seen == [robot, robot, both, both, both]
    assert steps == [0, 1, 2, 3, 4]
    assert not torch.equal(changed, plain)
    assert switcher.active == {"ink": 0.25}
    switcher.clear()
    assert all(
        torch.equal(one, other) for one, other in zip(bits(toy_pipe.unet), base, strict=True)
    )
    assert torch.equal(picture(toy_pipe, 5), plain)


def test_a_schedule_of_one_mix_is_that_mix(
    toy_pipe: StableDiffusionXLPipeline, switcher: AdapterSwitcher
) -> None:
    with switcher.using({"ink": 1.0}):
        expected = picture(toy_pipe, 3)
    with scheduled(switcher, alternate({"ink": 1.0}), 3) as callback:
        assert torch.equal(picture(toy_pipe, 3, callback_on_step_end=callback), expected)


def test_a_picture_that_fails_midway_leaves_the_base(
    toy_pipe: StableDiffusionXLPipeline, switcher: AdapterSwitcher
) -> None:
    base = bits(toy_pipe.unet)

    def stop(_pipe: Any, step: int, _time: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if step == 1:
            raise KeyboardInterrupt
        return tensors

    turns = alternate({"ink": 1.0}, {"robot": 1.0})
    with pytest.raises(KeyboardInterrupt), scheduled(switcher, turns, 4, then=stop) as callback:
        picture(toy_pipe, 4, callback_on_step_end=callback)
    assert all(
        torch.equal(one, other) for one, other in zip(bits(toy_pipe.unet), base, strict=True)
    )
    with pytest.raises(UnknownAdapterError), scheduled(switcher, alternate({}, {"no": 1.0}), 2):
        pytest.fail("an unknown adapter must be noticed before the first step")
    with pytest.raises(SettingError, match="at least one step"), scheduled(switcher, turns, 0):
        pass


def test_nobody_else_can_switch_within_a_schedule(
    toy_pipe: StableDiffusionXLPipeline, switcher: AdapterSwitcher
) -> None:
    seen = watch(toy_pipe, switcher)
    turns = alternate({"ink": 1.0}, {"robot": 1.0})
    other = threading.Thread(target=switcher.set, args=({"ink": 0.5},))

    def then(_pipe: Any, step: int, _time: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if step == 0:
            other.start()
            other.join(timeout=0.2)
        return tensors

    with scheduled(switcher, turns, 4, then=then) as callback:
        picture(toy_pipe, 4, callback_on_step_end=callback)
        assert other.is_alive()
    other.join()
    assert seen == [{"ink": 1.0}, {"robot": 1.0}] * 2
    assert switcher.active == {"ink": 0.5}


def test_a_composite_is_the_mean_of_the_predictions(
    toy_pipe: StableDiffusionXLPipeline, switcher: AdapterSwitcher
) -> None:
    base = bits(toy_pipe.unet)
    mixes = [{"robot": 1.0}, {"ink": 0.7}, {"ink": 0.5, "robot": 0.5}]
    unet = toy_pipe.unet
    original = unet.forward

    def averaged(*args: Any, **kwargs: Any) -> tuple[Tensor]:
        """The slow way: the UNet's own forward under each mix."""
        outputs = []
        for mix in mixes:
            switcher.set(mix)
            outputs.append(original(*args, **kwargs)[0])
        return ((outputs[0] + outputs[1] + outputs[2]) / 3,)

    unet.forward = averaged
    expected = picture(toy_pipe, 2)
    unet.forward = original
    switcher.clear()
    with composite(switcher, unet, mixes):
        result = picture(toy_pipe, 2)
        assert switcher.active == mixes[0]
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-5)
    assert switcher.active == {}
    assert all(torch.equal(one, other) for one, other in zip(bits(unet), base, strict=True))
    # The hook is gone with the block.
    assert not unet._forward_hooks


def test_a_composite_of_one_mix_is_that_mix(
    toy_pipe: StableDiffusionXLPipeline, switcher: AdapterSwitcher
) -> None:
    with switcher.using({"ink": 1.0}):
        expected = picture(toy_pipe, 2)
    with composite(switcher, toy_pipe.unet, [{"ink": 1.0}]):
        assert torch.equal(picture(toy_pipe, 2), expected)


def test_a_composite_of_a_compiled_module() -> None:
    torch.manual_seed(0)
    plain = nn.Linear(4, 3)
    compiled = torch.compile(plain, backend="aot_eager")
    switcher = AdapterSwitcher(plain)
    for name, value in (("one", 1.0), ("two", 2.0)):
        change = SparseDelta.from_dense(torch.full((3, 4), value))
        switcher.add(name, Adapter({"weight": change}, AdapterInfo(name)))
    x = torch.randn(5, 4)
    expected = plain(x) + 1.5 * x.sum(1, keepdim=True)
    with composite(switcher, compiled, [{"one": 1.0}, {"two": 1.0}]):
        torch.testing.assert_close(compiled(x), expected)


def test_what_cannot_be_composed_is_refused(
    toy_pipe: StableDiffusionXLPipeline, switcher: AdapterSwitcher
) -> None:
    with (
        pytest.raises(SettingError, match="nothing to compose"),
        composite(switcher, toy_pipe.unet, []),
    ):
        pass


def test_a_module_that_returns_something_else_is_refused() -> None:
    class Named(nn.Linear):
        def forward(self, x: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
            return {"sample": super().forward(x)}

    module = Named(4, 3)
    base = bits(module)
    switcher = AdapterSwitcher(module)
    change = SparseDelta.from_dense(torch.ones(3, 4))
    switcher.add("one", Adapter({"weight": change}, AdapterInfo("one")))
    refused = pytest.raises(SettingError, match=r"not a dict.*return_dict=False")
    with refused, composite(switcher, module, [{"one": 1.0}, {}]):
        module(torch.ones(2, 4))
    assert all(torch.equal(one, other) for one, other in zip(bits(module), base, strict=True))
