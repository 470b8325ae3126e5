"""AdapterSwitcher against dense sums, at its edges, and in several threads."""

import copy
import math
import threading
from collections.abc import Callable, Mapping
from types import SimpleNamespace

import pytest
import torch
from accelerate import cpu_offload
from diffusers import StableDiffusionXLPipeline
from torch import Tensor, nn

from shira_diffusion import fuse
from shira_diffusion.adapter import Adapter, AdapterInfo
from shira_diffusion.delta import SparseDelta
from shira_diffusion.errors import (
    MismatchError,
    SettingError,
    ShiraError,
    UnknownAdapterError,
)
from shira_diffusion.fingerprint import fingerprint
from shira_diffusion.switch import AdapterSwitcher

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def net(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 8), nn.Conv2d(3, 4, 3), nn.Linear(8, 5, bias=False))
    return module.to(dtype)


def adapter_for(module: nn.Module, seed: int, density: float = 0.3, **info: object) -> Adapter:
    generator = torch.Generator().manual_seed(seed)
    deltas = {}
    for name, weight in module.named_parameters():
        chosen = torch.rand(weight.shape, generator=generator) < density
        dense = torch.randn(weight.shape, generator=generator) * chosen
        deltas[name] = SparseDelta.from_dense(dense.half())
    return Adapter(deltas, AdapterInfo(f"a{seed}", **info))  # type: ignore[arg-type]


def weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in module.named_parameters()}


def assert_weights(module: nn.Module, expected: Mapping[str, Tensor]) -> None:
    for name, weight in module.named_parameters():
        assert torch.equal(weight.detach(), expected[name]), name


def mixed(base: Mapping[str, Tensor], parts: list[tuple[Adapter, float]]) -> dict[str, Tensor]:
    """Dense: all terms of an entry from the smallest up, in fp32, rounded once with the base."""
    result = {}
    for name, weight in base.items():
        terms = [one.deltas[name].to_dense().float() * strength for one, strength in parts]
        total = torch.zeros_like(weight, dtype=torch.float32)
        for term in torch.stack(terms).sort(dim=0).values if terms else ():
            total = total + term
        result[name] = (weight.float() + total).to(weight.dtype)
    return result


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("density", [0.0, 0.3, 1.0])
def test_a_mix_is_the_dense_sum_and_clear_is_the_base(dtype: torch.dtype, density: float) -> None:
    module = net(dtype)
    base = weights(module)
    adapters = [adapter_for(module, seed, density) for seed in range(3)]
    switcher = AdapterSwitcher(module)
    for seed, adapter in enumerate(adapters):
        switcher.add(f"a{seed}", adapter)
    assert_weights(module, base)
    for mix in ([1.0], [0.5, -0.7], [1.0, 0.3, 0.2], [0.0, 2.0, 0.0]):
        switcher.set({f"a{seed}": strength for seed, strength in enumerate(mix)})
        used = [(adapters[seed], one) for seed, one in enumerate(mix) if one]
        assert_weights(module, mixed(base, used))
        assert switcher.active == {f"a{seed}": one for seed, one in enumerate(mix) if one}
    switcher.clear()
    assert_weights(module, base)
    assert switcher.active == {}


def test_an_adapter_that_changes_nothing() -> None:
    module = net()
    base = weights(module)
    switcher = AdapterSwitcher(module)
    switcher.add("none", Adapter({}, AdapterInfo("none")))
    switcher.add("some", adapter_for(module, 1))
    for mix in ({"none": 1.0}, {"none": 0.5}, {"none": 1.0, "some": 1.0}, {"none": 1.0}):
        switcher.set(mix)
        assert switcher.active == mix
        assert_weights(module, mixed(base, [(adapter_for(module, 1), 1.0)] * ("some" in mix)))
    switcher.clear()
    assert_weights(module, base)


def test_weights_of_several_dtypes_switch_together_or_not_at_all() -> None:
    def mixed_net() -> nn.Sequential:
        module = net()
        module[2].to(torch.bfloat16)
        return module

    module = mixed_net()
    base = weights(module)
    one, two = adapter_for(module, 1), adapter_for(module, 2)
    switcher = AdapterSwitcher(module)
    switcher.add("one", one)
    switcher.add("two", two)
    for mix, parts in (
        ({"one": 1.0}, [(one, 1.0)]),
        ({"two": 0.5}, [(two, 0.5)]),
        ({"one": 1.0}, [(one, 1.0)]),
        ({"one": 0.3, "two": 1.0}, [(one, 0.3), (two, 1.0)]),
    ):
        switcher.set(mix)
        assert_weights(module, mixed(base, parts))
    with torch.no_grad():
        module[2].weight.add_(1.0)
    spoiled = weights(module)
    for mix in ({}, {"one": 1.0}, {"one": 0.5, "two": 1.0}):
        with pytest.raises(MismatchError, match=r"'2\.weight' cannot be given back"):
            switcher.set(mix)
        assert_weights(module, spoiled)
    with torch.no_grad():
        module[2].weight.copy_(mixed(base, [(one, 0.3), (two, 1.0)])["2.weight"])
    switcher.clear()
    assert_weights(module, base)


def test_addresses_and_names_stay() -> None:
    module = net()
    before = {name: weight.data_ptr() for name, weight in module.named_parameters()}
    switcher = AdapterSwitcher(module)
    switcher.add("a", adapter_for(module, 1))
    switcher.set({"a": 1.0})
    assert {name: weight.data_ptr() for name, weight in module.named_parameters()} == before


def test_order_does_not_matter() -> None:
    results = []
    for order in ([0, 1, 2], [2, 1, 0], [1, 2, 0]):
        module = net()
        switcher = AdapterSwitcher(module)
        for seed in order:
            switcher.add(f"a{seed}", adapter_for(module, seed, 0.9))
        switcher.set({f"a{seed}": 0.1 + seed / 3 for seed in order})
        results.append(weights(module))
    assert_weights(module, results[0])
    for name, weight in results[0].items():
        assert torch.equal(weight, results[1][name])


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_fused_adapter_gives_the_weights_of_its_mix(dtype: torch.dtype) -> None:
    module = net(dtype)
    parts = [(adapter_for(module, seed, 0.6), 0.9 - seed / 3) for seed in range(3)]
    switcher = AdapterSwitcher(module)
    for adapter, _ in parts:
        switcher.add(adapter.info.name, adapter)
    switcher.set({adapter.info.name: strength for adapter, strength in parts})
    mix = weights(module)
    switcher.add("fused", fuse.weighted_sum(parts, name="fused"))
    switcher.set({"fused": 1.0})
    assert_weights(module, mix)


def test_using_nests_and_comes_back_after_errors() -> None:
    module = net()
    base = weights(module)
    one, two = adapter_for(module, 1), adapter_for(module, 2)
    switcher = AdapterSwitcher(module)
    switcher.add("one", one)
    switcher.add("two", two)
    switcher.set({"one": 0.5})
    with switcher.using({"two": 1.0}):
        assert_weights(module, mixed(base, [(two, 1.0)]))
        with switcher.using({"one": 1.0, "two": 1.0}):
            assert_weights(module, mixed(base, [(one, 1.0), (two, 1.0)]))
        assert_weights(module, mixed(base, [(two, 1.0)]))
        with pytest.raises(ZeroDivisionError), switcher.using({"one": 1.0}):
            _ = 1 // 0
        assert_weights(module, mixed(base, [(two, 1.0)]))
    assert_weights(module, mixed(base, [(one, 0.5)]))
    with pytest.raises(UnknownAdapterError), switcher.using({"three": 1.0}):
        pass
    assert_weights(module, mixed(base, [(one, 0.5)]))


def test_what_is_removed_inside_using_does_not_come_back() -> None:
    module = net()
    base = weights(module)
    switcher = AdapterSwitcher(module)
    for seed in (1, 2):
        switcher.add(f"a{seed}", adapter_for(module, seed))
    switcher.set({"a1": 1.0, "a2": 1.0})
    with switcher.using({}):
        switcher.remove("a1")
        switcher.add("a1", adapter_for(module, 3))
    assert_weights(module, mixed(base, [(adapter_for(module, 2), 1.0)]))
    switcher.remove("a2")
    assert_weights(module, base)
    assert switcher.names == ("a1",)


@pytest.mark.parametrize(
    ("mix", "error", "fault"),
    [
        ({"robt": 1.0}, UnknownAdapterError, "'robot'"),
        ({"robot": 1.0, "none": 0.0}, UnknownAdapterError, "'none'"),
        ({"robot": math.nan}, SettingError, "finite"),
        ({"robot": -math.inf}, SettingError, "finite"),
        ({"robot": "much"}, SettingError, "number"),
        ({"robot": None}, SettingError, "number"),
        ({"robot": 1e30}, MismatchError, "range of torch.float16"),
        ({"robot": 1e300}, SettingError, "fp32's range"),
        ({"robot": 10**400}, SettingError, "number"),
    ],
)
def test_a_failing_set_changes_nothing(
    mix: dict[str, float], error: type[ShiraError], fault: str
) -> None:
    module = net(torch.float16)
    switcher = AdapterSwitcher(module)
    switcher.add("robot", adapter_for(module, 1))
    switcher.set({"robot": 0.5})
    before = weights(module)
    with pytest.raises(error, match=fault):
        switcher.set(mix)
    assert_weights(module, before)
    assert switcher.active == {"robot": 0.5}
    # The failure must not have broken the way back either.
    switcher.clear()
    assert_weights(module, weights(net(torch.float16)))


def test_an_adapter_that_does_not_fit_is_refused() -> None:
    module = net()
    switcher = AdapterSwitcher(module)
    good = adapter_for(module, 1)
    switcher.add("a", good)
    with pytest.raises(SettingError, match="already loaded"):
        switcher.add("a", good)
    some = SparseDelta.from_dense(torch.ones(6, 8))
    with pytest.raises(MismatchError, match=r"no weight '0\.wieght'.*'0\.weight'"):
        switcher.add("b", Adapter({"0.wieght": some}, AdapterInfo("b")))
    with pytest.raises(MismatchError, match=r"\(8, 6\).*\(6, 8\)"):
        switcher.add("b", Adapter({"0.weight": some}, AdapterInfo("b")))
    with pytest.raises(UnknownAdapterError, match="'a'"):
        switcher.remove("b")
    assert switcher.names == ("a",)
    for dtype in (torch.float64, torch.float8_e4m3fn):
        with pytest.raises(MismatchError, match="fp16, bf16 or fp32"):
            AdapterSwitcher(net().to(dtype)).add("a", good)


def test_an_adapter_of_another_base_needs_for_base() -> None:
    module = net()
    switcher = AdapterSwitcher({"unet": module})
    named = adapter_for(module, 1)
    deltas = {f"unet.{name}": delta for name, delta in named.deltas.items()}
    info = AdapterInfo("x", base_model="other-xl", base_fingerprint={"unet": "0", "vae": "1"})
    stranger = Adapter(deltas, info)
    with pytest.raises(MismatchError, match=r"other-xl.*for_base"):
        switcher.add("x", stranger)
    switcher.add("x", stranger.for_base(switcher.fingerprints))
    known = AdapterInfo("y", base_fingerprint={"unet": fingerprint(module)})
    switcher.add("y", Adapter(deltas, known))
    assert switcher.names == ("x", "y")


def test_targets() -> None:
    unet, vae = net(), net()
    part = AdapterSwitcher(SimpleNamespace(components={"unet": unet, "vae": vae, "tokenizer": 3}))
    assert dict(part.fingerprints) == {"unet": fingerprint(unet)}
    assert dict(AdapterSwitcher(unet).fingerprints) == {"": fingerprint(unet)}
    with pytest.raises(MismatchError, match="neither a pipeline"):
        AdapterSwitcher(3)
    with pytest.raises(MismatchError, match="no module"):
        AdapterSwitcher({})


def test_a_pipeline_by_stored_names(toy_pipe: StableDiffusionXLPipeline) -> None:
    switcher = AdapterSwitcher(toy_pipe)
    assert set(switcher.fingerprints) == {"unet", "text_encoder", "text_encoder_2"}
    weight = toy_pipe.unet.conv_in.weight
    one = SparseDelta.from_dense(torch.ones(weight.shape))
    deltas = {"unet.conv_in.weight": one}
    changed = [weight]
    for name in ("text_encoder", "text_encoder_2"):
        # transformers decides whether `text_model.` is in the module's own names.
        module = getattr(toy_pipe, name)
        path = next(name for name, _ in module.named_parameters() if name.endswith("q_proj.weight"))
        tuned = module.get_parameter(path)
        stored = f"{name}.text_model.{path.removeprefix('text_model.')}"
        deltas[stored] = SparseDelta.from_dense(torch.ones(tuned.shape))
        changed.append(tuned)
    base = [one.detach().clone() for one in changed]
    switcher.add("all", Adapter(deltas, AdapterInfo("all")))
    with switcher.using({"all": 1.0}):
        for weight, before in zip(changed, base, strict=True):
            assert torch.equal(weight.detach(), before + 1.0)
    for weight, before in zip(changed, base, strict=True):
        assert torch.equal(weight.detach(), before)


def test_tied_weights_are_one_weight() -> None:
    module = nn.ModuleDict({"a": nn.Linear(3, 3, bias=False), "b": nn.Linear(3, 3, bias=False)})
    module["b"].weight = module["a"].weight
    base = module["a"].weight.detach().clone()
    one = SparseDelta.from_dense(torch.ones(3, 3))
    switcher = AdapterSwitcher(module)
    switcher.add("first", Adapter({"a.weight": one}, AdapterInfo("first")))
    switcher.add("second", Adapter({"b.weight": one}, AdapterInfo("second")))
    switcher.set({"first": 1.0, "second": 1.0})
    assert torch.equal(module["b"].weight.detach(), base + 2)
    switcher.clear()
    assert torch.equal(module["a"].weight.detach(), base)
    with pytest.raises(MismatchError, match="under two names"):
        switcher.add("both", Adapter({"a.weight": one, "b.weight": one}, AdapterInfo("both")))


@pytest.mark.parametrize(
    "move",
    [
        lambda module: module.to(torch.bfloat16),
        lambda module: module.to(memory_format=torch.channels_last),
        lambda module: module.load_state_dict(copy.deepcopy(module.state_dict()), assign=True),
    ],
    ids=["cast", "channels_last", "new parameters"],
)
def test_a_moved_module_is_followed(move: Callable[[nn.Module], object]) -> None:
    module, never = net(), net()
    adapter = adapter_for(module, 1)
    switcher = AdapterSwitcher(module)
    switcher.add("a", adapter)
    switcher.set({"a": 0.5})
    move(module)
    move(never)
    switcher.set({"a": 1.5})
    assert_weights(module, mixed(weights(never), [(adapter, 1.5)]))
    switcher.clear()
    assert_weights(module, weights(never))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda module: module[0].weight.data.add_(1.0),
        lambda module: module.load_state_dict(net().state_dict()),
        lambda module: setattr(module, "0", nn.Linear(6, 8)),
        lambda module: setattr(module, "0", nn.Linear(2, 2)),
        lambda module: setattr(module, "0", nn.Identity()),
        lambda module: module.to("meta"),
        # fp16 and back has lost digits of the base that only the switcher still has.
        lambda module: module.half().float(),
    ],
    ids=["added", "loaded", "replaced", "reshaped", "removed", "meta", "rounded"],
)
def test_weights_changed_by_others_are_refused(spoil: Callable[[nn.Module], object]) -> None:
    module = net()
    switcher = AdapterSwitcher(module)
    switcher.add("a", adapter_for(module, 1))
    switcher.set({"a": 0.5})
    with torch.no_grad():
        spoil(module)
    spoiled = copy.deepcopy(module)
    for attempt in (switcher.clear, lambda: switcher.set({"a": 1.0})):
        with pytest.raises(MismatchError):
            attempt()
        assert switcher.active == {"a": 0.5}
    for name, weight in module.named_parameters():
        if not weight.is_meta:
            assert torch.equal(weight, spoiled.get_parameter(name))


def test_offloaded_and_inference_weights_are_refused() -> None:
    with torch.device("meta"):
        offloaded = nn.Linear(2, 2)
    with pytest.raises(MismatchError, match="enable_model_cpu_offload"):
        AdapterSwitcher(offloaded)
    sequential = cpu_offload(net(), execution_device=torch.device("cpu"))
    with pytest.raises(MismatchError, match="enable_model_cpu_offload"):
        AdapterSwitcher(sequential)
    with torch.inference_mode():
        inference = nn.Linear(2, 2)
    with pytest.raises(MismatchError, match="inference_mode"):
        AdapterSwitcher(inference)


def test_it_works_under_inference_mode() -> None:
    module = net()
    base = weights(module)
    adapter = adapter_for(module, 1)
    switcher = AdapterSwitcher(module)
    switcher.add("a", adapter)
    with torch.inference_mode():
        switcher.set({"a": 1.0})
        assert_weights(module, mixed(base, [(adapter, 1.0)]))
    switcher.set({"a": 0.5})
    assert_weights(module, mixed(base, [(adapter, 0.5)]))
    switcher.clear()
    assert_weights(module, base)


def test_a_compiled_module_has_its_own_names() -> None:
    module = net()
    switcher = AdapterSwitcher(torch.compile(module))
    switcher.add("a", adapter_for(module, 1))
    assert dict(switcher.fingerprints) == {"": fingerprint(module)}


def test_two_threads_never_see_each_other() -> None:
    module = net()
    base = weights(module)
    switcher = AdapterSwitcher(module)
    wanted = {}
    for seed in (1, 2):
        adapter = adapter_for(module, seed)
        switcher.add(f"a{seed}", adapter)
        wanted[f"a{seed}"] = mixed(base, [(adapter, 1.0)])
    faults: list[str] = []
    start = threading.Barrier(2)

    def work(name: str) -> None:
        start.wait()
        for _ in range(150):
            with switcher.using({name: 1.0}):
                for _ in range(3):
                    seen = weights(module)
                    faults.extend(
                        key for key in seen if not torch.equal(seen[key], wanted[name][key])
                    )

    threads = [threading.Thread(target=work, args=(name,)) for name in wanted]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults
    assert_weights(module, base)
