"""Reading and overwriting entries of many weights against one weight at a time, in Python."""

import importlib.util
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from shira_diffusion import scatter
from shira_diffusion.errors import EntriesChangedError, MismatchError
from shira_diffusion.places import Places, Step, WeightTable
from shira_diffusion.scatter import exchange_many, read_many, write_many

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
BITS = {torch.float32: torch.int32, torch.float16: torch.int16, torch.bfloat16: torch.int16}
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
# The kernels' own file on the CPU: set for the run that a test below starts.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
# Sizes at a block's edges, an empty weight, and one of which no entry is chosen.
SHAPES = [(40, 30), (1,), (0, 3), (32, 32), (5, 7), (3, 4, 2, 2), (2049,)]
TAKEN = [1200, 1, 0, 1024, 0, 13, 1025]


@pytest.fixture(autouse=True, params=["one thread", "three threads"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each way of the hot path, for few entries too."""
    if INTERPRETED:
        monkeypatch.setattr(scatter, "_has_kernels", lambda table: table.is_flat)
    if request.param == "three threads":
        monkeypatch.setattr(scatter, "_ENTRIES_WORTH_A_THREAD", 1)
        monkeypatch.setattr(torch, "get_num_threads", lambda: 3)


def bits(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous().view(BITS[tensor.dtype])


def awkward(shape: tuple[int, ...], generator: torch.Generator, dtype: torch.dtype) -> Tensor:
    odd = torch.tensor([math.nan, math.inf, -math.inf, -0.0, torch.finfo(dtype).tiny])
    values = torch.randn(shape, generator=generator)
    picks = torch.randint(len(odd), shape, generator=generator)
    return torch.where(torch.rand(shape, generator=generator) < 0.2, odd[picks], values).to(dtype)


class Case:
    """Weights, places in them, and values to write there."""

    def __init__(self, dtype: torch.dtype, device: str, seed: int = 0):
        generator = torch.Generator().manual_seed(seed)
        self.weights = [awkward(shape, generator, dtype).to(device) for shape in SHAPES]
        self.table = WeightTable(self.weights)
        self.chosen = [
            torch.randperm(math.prod(shape), generator=generator)[:taken].sort().values
            for shape, taken in zip(SHAPES, TAKEN, strict=True)
        ]
        self.places = Places.join([one.to(device, torch.int32) for one in self.chosen])
        self.values = awkward((sum(TAKEN),), generator, dtype).to(device)

    def slow_read(self) -> Tensor:
        entries = [
            weight.flatten()[int(one)]
            for weight, chosen in zip(self.weights, self.chosen, strict=True)
            for one in chosen
        ]
        return torch.stack(entries)

    def slow_write(self, values: Tensor) -> list[Tensor]:
        """Copies of the weights with `values` written entry by entry."""
        copies, number = [], 0
        for weight, chosen in zip(self.weights, self.chosen, strict=True):
            flat = weight.flatten().clone()
            for one in chosen.tolist():
                flat[one] = values[number]
                number += 1
            copies.append(flat.reshape(weight.shape))
        return copies

    def copies(self) -> list[Tensor]:
        return [weight.clone() for weight in self.weights]

    def assert_weights(self, expected: list[Tensor]) -> None:
        for weight, wanted in zip(self.weights, expected, strict=True):
            assert torch.equal(bits(weight), bits(wanted))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_read_and_write_equal_the_slow_ones(dtype: torch.dtype, device: str) -> None:
    case = Case(dtype, device)
    assert torch.equal(bits(read_many(case.table, case.places)), bits(case.slow_read()))
    expected = case.slow_write(case.values)
    addresses = [weight.data_ptr() for weight in case.weights]
    versions = [weight._version for weight, taken in zip(case.weights, TAKEN, strict=True) if taken]
    write_many(case.table, case.places, case.values)
    case.assert_weights(expected)
    assert [weight.data_ptr() for weight in case.weights] == addresses
    # Autograd must learn of the write.
    after = [weight._version for weight, taken in zip(case.weights, TAKEN, strict=True) if taken]
    assert all(now > was for now, was in zip(after, versions, strict=True))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_an_exchange_and_its_way_back(dtype: torch.dtype, device: str) -> None:
    case, other = Case(dtype, device), Case(dtype, device, seed=1)
    before = case.copies()
    one = Step(case.places, case.slow_read(), case.values)
    expected = case.slow_write(case.values)
    exchange_many(case.table, [one])
    case.assert_weights(expected)
    case.chosen, case.places = other.chosen, other.places
    two = Step(other.places, case.slow_read(), other.values)
    expected = case.slow_write(other.values)
    exchange_many(case.table, [two])
    case.assert_weights(expected)
    # Back out and in again in one call: entries of both lie in both steps.
    exchange_many(case.table, [two.reversed(), one.reversed()])
    case.assert_weights(before)
    exchange_many(case.table, [one, two])
    case.assert_weights(expected)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("turn", [0, 1])
@pytest.mark.parametrize("missed", [0, 1200, 2225, 2238, 3262])
def test_an_exchange_that_misses_changes_nothing(
    dtype: torch.dtype, device: str, turn: int, missed: int
) -> None:
    case = Case(dtype, device)
    before = case.copies()
    held = case.slow_read()
    wrong = held.clone()
    wrong[missed] = 7.5
    steps = [Step(case.places, held, case.values), Step(case.places, case.values, held)]
    steps[turn] = Step(case.places, wrong, case.values)
    if turn == 1:
        wrong[:] = case.values
        wrong[missed] = 7.5
    with pytest.raises(EntriesChangedError) as caught:
        exchange_many(case.table, steps)
    firsts = torch.tensor(TAKEN).cumsum(0)
    assert caught.value.weight == int((firsts <= missed).sum())
    assert caught.value.step == turn
    case.assert_weights(before)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_fails_meanwhile_changes_nothing(dtype: torch.dtype, device: str) -> None:
    case = Case(dtype, device)
    before = case.copies()
    held = case.slow_read()
    doubled = case.values * 2
    steps = [Step(case.places, held, case.values), Step(case.places, case.values, doubled)]

    def fail() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        exchange_many(case.table, steps, fail)
    case.assert_weights(before)
    asked: list[bool] = []
    exchange_many(case.table, steps, lambda: asked.append(True))
    assert asked == [True]
    assert torch.equal(bits(case.slow_read()), bits(doubled))


@pytest.mark.parametrize("device", DEVICES)
def test_reading_and_exchanging_under_inference_mode(device: str) -> None:
    case = Case(torch.float32, device)
    expected = case.slow_write(case.values)
    with torch.inference_mode():
        held = read_many(case.table, case.places)
        exchange_many(case.table, [Step(case.places, held, case.values)])
    case.assert_weights(expected)


@pytest.mark.parametrize("device", DEVICES)
def test_nan_is_expected_where_nan_is(device: str) -> None:
    weight = torch.tensor([math.nan, 1.0, -0.0], device=device)
    # Another NaN than torch's own, as casting on another device may leave it.
    weight.view(torch.int32)[0] = 0x7FC12345
    places = Places.join([torch.arange(3, dtype=torch.int32, device=device)])
    expected = torch.tensor([math.nan, 1.0, 0.0], device=device)
    new = torch.tensor([1.0, 2.0, 3.0], device=device)
    before = bits(weight).clone()
    table = WeightTable([weight])
    exchange_many(table, [Step(places, expected, new)])
    assert weight.tolist() == [1.0, 2.0, 3.0]
    weight.view(torch.int32).copy_(before)
    # The way back of a failing exchange puts the very same NaN and -0 back.
    with pytest.raises(EntriesChangedError):
        exchange_many(table, [Step(places, expected, new), Step(places, expected, new)])
    assert torch.equal(bits(weight), before)


@pytest.mark.parametrize("device", DEVICES)
def test_weights_without_a_flat_view(device: str) -> None:
    weights = [
        torch.arange(24.0, device=device).reshape(4, 6).t(),
        torch.randn(2, 3, 4, 4, device=device).to(memory_format=torch.channels_last),
    ]
    logical = [weight.flatten().clone() for weight in weights]
    table = WeightTable(weights)
    assert not table.is_flat
    parts = [torch.tensor([0, 1, 7], dtype=torch.int32), torch.tensor([2, 95], dtype=torch.int32)]
    places = Places.join([part.to(device) for part in parts])
    held = read_many(table, places)
    wanted = [flat[part.long()] for flat, part in zip(logical, parts, strict=True)]
    assert torch.equal(held, torch.cat(wanted))
    exchange_many(table, [Step(places, held, -held)])
    for flat, part in zip(logical, parts, strict=True):
        flat[part.long()] *= -1
    assert all(torch.equal(one.flatten(), flat) for one, flat in zip(weights, logical, strict=True))


def test_a_table_knows_when_its_weights_have_moved() -> None:
    weight = torch.nn.Parameter(torch.randn(2, 3, 2, 2))
    kept = weight.data
    table = WeightTable([weight])
    assert table.is_current()
    for moved in (kept.clone(), kept.half(), kept.to(memory_format=torch.channels_last)):
        weight.data = moved
        assert not table.is_current()
        weight.data = kept
        assert table.is_current()
    with pytest.raises(MismatchError, match="one device and dtype"):
        WeightTable([torch.zeros(1), torch.zeros(1).half()])


@given(st.lists(st.integers(0, 5000), min_size=1, max_size=8))
@settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_programs_cover_every_entry_once(counts: list[int]) -> None:
    triton_scatter = pytest.importorskip("shira_diffusion.triton_scatter")
    seen = []
    for weight, first, stop in triton_scatter.programs(counts, torch.device("cpu")).tolist():
        assert 0 < stop - first <= triton_scatter.BLOCK
        seen += [(weight, entry) for entry in range(first, stop)]
    owners = [weight for weight, count in enumerate(counts) for _ in range(count)]
    assert seen == list(zip(owners, range(sum(counts)), strict=True))


@pytest.mark.skipif(
    INTERPRETED or importlib.util.find_spec("triton") is None, reason="needs the triton package"
)
def test_the_kernels_in_tritons_interpreter() -> None:
    """This file again, with the kernels in place of the plain path, on the CPU."""
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-3000:]
