"""After any sequence of switch operations, failures included, the base is there bit for bit."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from torch import Tensor, nn

from shira_diffusion import scatter
from shira_diffusion.adapter import Adapter, AdapterInfo
from shira_diffusion.delta import SparseDelta
from shira_diffusion.errors import ShiraError
from shira_diffusion.switch import AdapterSwitcher

NAMES = ["a", "b", "c"]
BITS = {torch.float32: torch.int32, torch.float16: torch.int16, torch.bfloat16: torch.int16}
STRENGTHS = st.sampled_from([0.0, 1.0, -0.5, 0.3, 2.0, 1e5, 1e30, 1e300, math.nan, math.inf])


class DiskOnFireError(Exception):
    """A failure from outside, in the middle of the writing."""


@contextmanager
def write_that_fails_at(call: int) -> Iterator[None]:
    """Let the `call`-th write fail, and only that one."""
    calls = 0
    real = scatter.write

    def write(weight: Tensor, indices: Tensor, values: Tensor) -> None:
        nonlocal calls
        calls += 1
        if calls == call:
            raise DiskOnFireError
        real(weight, indices, values)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(scatter, "write", write)
        yield


def awkward_net(dtype: torch.dtype, seed: int) -> nn.Sequential:
    """Weights with NaN, infinities, both zeros, the smallest numbers, and no flat view."""
    generator = torch.Generator().manual_seed(seed)
    module = nn.Sequential(nn.Linear(5, 4), nn.Conv2d(2, 3, 3), nn.Embedding(6, 3)).to(dtype)
    odd = torch.tensor([math.nan, math.inf, -math.inf, -0.0, 0.0, torch.finfo(dtype).tiny, 1e-8])
    for weight in module.parameters():
        values = torch.randn(weight.shape, generator=generator)
        picks = torch.randint(len(odd), weight.shape, generator=generator)
        is_odd = torch.rand(weight.shape, generator=generator) < 0.3
        weight.data = torch.where(is_odd, odd[picks], values).to(dtype)
    module[1].weight.data = module[1].weight.data.to(memory_format=torch.channels_last)
    module[0].weight.data = module[0].weight.data.t().contiguous().t()
    return module


def bits(weight: Tensor) -> Tensor:
    return weight.detach().contiguous().view(BITS[weight.dtype])


class SwitcherMachine(RuleBasedStateMachine):
    @initialize(dtype=st.sampled_from(list(BITS)), seed=st.integers(0, 1000))
    def begin(self, dtype: torch.dtype, seed: int) -> None:
        self.module = awkward_net(dtype, seed)
        self.base = {
            name: weight.detach().clone() for name, weight in self.module.named_parameters()
        }
        self.switcher = AdapterSwitcher(self.module)
        self.adapters: dict[str, Adapter] = {}
        self.mix: dict[str, float] = {}

    @rule(name=st.sampled_from(NAMES), seed=st.integers(0, 99), share=st.sampled_from([0, 0.3, 1]))
    def add(self, name: str, seed: int, share: float) -> None:
        generator = torch.Generator().manual_seed(seed)
        deltas = {}
        for weight_name, weight in self.base.items():
            if torch.rand((), generator=generator) < 0.7:
                chosen = torch.rand(weight.shape, generator=generator) < share
                dense = torch.randn(weight.shape, generator=generator) * chosen
                deltas[weight_name] = SparseDelta.from_dense(dense)
        adapter = Adapter(deltas, AdapterInfo(name))
        if name in self.adapters:
            with pytest.raises(ShiraError):
                self.switcher.add(name, adapter)
        else:
            self.switcher.add(name, adapter)
            self.adapters[name] = adapter

    @rule(name=st.sampled_from(NAMES))
    def remove(self, name: str) -> None:
        if name not in self.adapters:
            with pytest.raises(ShiraError):
                self.switcher.remove(name)
            return
        self.switcher.remove(name)
        del self.adapters[name]
        self.mix.pop(name, None)

    @rule(mix=st.dictionaries(st.sampled_from(NAMES), STRENGTHS))
    def set(self, mix: dict[str, float]) -> None:
        try:
            self.switcher.set(mix)
        except ShiraError:
            assert not self.is_harmless(mix)
            return
        self.mix = {name: strength for name, strength in mix.items() if strength}

    def is_harmless(self, mix: Mapping[str, float]) -> bool:
        """Whether `mix` gives no reason to refuse it: nothing unknown, nothing that overflows."""
        dtype = next(iter(self.base.values())).dtype
        modest = all(abs(strength) <= 2 for strength in mix.values())
        return dtype == torch.float32 and modest and mix.keys() <= self.adapters.keys()

    @rule(mix=st.dictionaries(st.sampled_from(NAMES), STRENGTHS), call=st.integers(1, 12))
    def set_with_a_failing_write(self, mix: dict[str, float], call: int) -> None:
        with write_that_fails_at(call):
            try:
                self.switcher.set(mix)
            except (ShiraError, DiskOnFireError):
                return
        self.mix = {name: strength for name, strength in mix.items() if strength}

    @rule(mix=st.dictionaries(st.sampled_from(NAMES), STRENGTHS), fails=st.booleans())
    def use(self, mix: dict[str, float], fails: bool) -> None:
        outside = self.mix
        try:
            with self.switcher.using(mix):
                self.mix = {name: strength for name, strength in mix.items() if strength}
                self.weights_are_the_mix()
                if fails:
                    raise DiskOnFireError
        except (ShiraError, DiskOnFireError):
            pass
        self.mix = outside

    @rule()
    def clear(self) -> None:
        self.switcher.clear()
        self.mix = {}
        self.base_is_there()

    @rule(name=st.sampled_from(["0.weight", "1.weight", "2.weight"]), flat=st.booleans())
    def lie_elsewhere(self, name: str, flat: bool) -> None:
        weight = self.module.get_parameter(name)
        kept = torch.contiguous_format if flat else torch.preserve_format
        weight.data = weight.data.clone(memory_format=kept)

    @precondition(lambda self: not self.mix)
    @rule(name=st.sampled_from(["0.weight", "1.bias", "2.weight"]), by=st.sampled_from([0.5, -3.0]))
    def train_the_base(self, name: str, by: float) -> None:
        self.module.get_parameter(name).data.add_(by)
        self.base[name] = self.module.get_parameter(name).detach().clone()

    # Where a cast turns a mix into infinity or equal NaNs, the old mix may not be told apart.
    @precondition(lambda self: next(iter(self.base.values())).dtype == torch.float32)
    @rule(to=st.sampled_from([torch.bfloat16, torch.float16]))
    def cast(self, to: torch.dtype) -> None:
        self.module.to(to)
        self.base = {name: weight.to(to) for name, weight in self.base.items()}
        self.switcher.clear()
        self.mix = {}

    @invariant()
    def weights_are_the_mix(self) -> None:
        assert self.switcher.active == self.mix
        expected = expected_weights(self.base, self.adapters, self.mix)
        for name, weight in self.module.named_parameters():
            assert torch.equal(weight.nan_to_num(1e4), expected[name].nan_to_num(1e4)), name

    def teardown(self) -> None:
        if hasattr(self, "switcher"):
            self.switcher.clear()
            self.base_is_there()

    def base_is_there(self) -> None:
        for name, weight in self.module.named_parameters():
            assert torch.equal(bits(weight), bits(self.base[name])), name


def expected_weights(
    base: Mapping[str, Tensor], adapters: Mapping[str, Adapter], mix: Mapping[str, float]
) -> dict[str, Tensor]:
    result = {}
    for name, weight in base.items():
        changes = [(adapters[one].deltas.get(name), strength) for one, strength in mix.items()]
        # An untouched entry stays so under any strength, while 0 * infinity would not be 0.
        terms = [
            torch.where(one.to_dense() == 0, 0.0, one.to_dense() * strength)
            for one, strength in changes
            if one is not None
        ]
        total = torch.zeros(weight.shape)
        for term in torch.stack(terms).sort(dim=0).values if terms else ():
            total = total + term
        result[name] = (weight.float() + total).to(weight.dtype)
    return result


TestSwitcher = SwitcherMachine.TestCase
# 10,000 operations.
TestSwitcher.settings = settings(max_examples=200, stateful_step_count=50, deadline=None)
