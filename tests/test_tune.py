"""SparseTuner: equal to dense training with masked gradients, and gone without a trace."""

import copy
import math
from collections.abc import Callable

import pytest
import torch
from masked_training import gradient_at, train_dense, train_sparse
from torch import Tensor, nn

from shira_diffusion import masks
from shira_diffusion.adapter import Adapter, AdapterInfo
from shira_diffusion.errors import DeltaError, MismatchError, SettingError, ShiraError
from shira_diffusion.switch import AdapterSwitcher
from shira_diffusion.tune import SparseTuner

TUNED = ["embed.weight", "conv.weight", "first.weight", "second.weight", "norm.bias"]
OPTIMIZERS: dict[str, Callable[[list[nn.Parameter]], torch.optim.Optimizer]] = {
    "adamw": lambda params: torch.optim.AdamW(params, lr=0.05, weight_decay=0.0),
    "momentum": lambda params: torch.optim.SGD(params, lr=0.05, momentum=0.9),
}


class Net(nn.Module):
    """One layer of each kind that diffusion models have, with a weight that is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 12)
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.first = nn.Linear(12, 17)
        self.norm = nn.LayerNorm(17)
        self.second = nn.Linear(17, 17, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.conv(self.embed(tokens).reshape(-1, 3, 2, 2)).reshape(-1, 12)
        hidden = self.norm(self.first(hidden)).relu()
        return self.second(self.second(hidden))


def net(dtype: torch.dtype = torch.float32) -> Net:
    torch.manual_seed(0)
    module = Net().to(dtype)
    module.conv.to(memory_format=torch.channels_last)
    return module


def batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    tokens = torch.randint(11, (4,), generator=generator)
    return tokens, torch.randn(4, 17, generator=generator)


def loss(module: nn.Module, step: int) -> Tensor:
    tokens, target = batch(step)
    return nn.functional.mse_loss(module(tokens).float(), target)


def chosen(module: nn.Module, kind: str, density: float = 0.2) -> dict[str, Tensor]:
    probe = copy.deepcopy(module)
    loss(probe, 99).backward()
    indices = {}
    for name, weight in probe.named_parameters():
        if name in TUNED:
            indices[name] = masks.select(
                kind,
                weight,
                masks.count(weight.numel(), density),
                generator=masks.layer_generator(0, name),
                gradient=weight.grad,
            )
    return indices


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("density", [0.01, 0.2, 1.0])
@pytest.mark.parametrize("kind", masks.KINDS)
def test_equals_dense_training_with_masked_gradients(
    kind: str, density: float, optimizer: str
) -> None:
    sparse, dense, base = net(), net(), net()
    indices = chosen(sparse, kind, density)
    tuner = SparseTuner(sparse, indices)
    train_sparse(sparse, tuner, OPTIMIZERS[optimizer](tuner.parameters()), loss, range(5))
    trained = [dense.get_parameter(name) for name in indices]
    train_dense(dense, indices, OPTIMIZERS[optimizer](trained), loss, range(5))
    deltas = tuner.deltas()
    for name, weight in sparse.named_parameters():
        before, wanted = (other.get_parameter(name).detach() for other in (base, dense))
        assert torch.equal(weight.detach(), wanted), name
        if name in indices:
            assert not torch.equal(weight.detach(), before)
            assert torch.equal(deltas[name].to_dense(), wanted - before)
        else:
            assert torch.equal(weight.detach(), before)


def test_gradients_are_gathered_and_freed() -> None:
    module, dense = net(), net()
    indices = chosen(module, "rand")
    tuner = SparseTuner(module, indices)
    assert tuner.values.numel() == sum(entries.numel() for entries in indices.values())
    for step in range(2):
        loss(module, step).backward()
        loss(dense, step).backward()
    assert all(weight.grad is None for weight in module.parameters())
    assert tuner.values.grad is not None
    assert torch.equal(tuner.values.grad, gradient_at(dense, indices))
    assert list(tuner.indices) == sorted(indices)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_close_leaves_the_module_as_it_was(dtype: torch.dtype) -> None:
    module, before = net(dtype), net(dtype)
    module.first.bias.requires_grad_(False)
    with SparseTuner(module, chosen(net(), "rand")) as tuner:
        assert not module.norm.weight.requires_grad
        assert module.first.weight.requires_grad
        train_sparse(module, tuner, OPTIMIZERS["adamw"](tuner.parameters()), loss, range(2))
        assert not torch.equal(module.first.weight, before.first.weight)
    for name, weight in module.named_parameters():
        assert torch.equal(weight.detach(), before.get_parameter(name).detach())
        assert weight.requires_grad == (name != "first.bias")
        assert weight.grad is None
    tuner.close()
    with pytest.raises(ShiraError, match="closed"):
        tuner.write()
    loss(module, 0).backward()
    assert module.first.weight.grad is not None


def test_small_steps_add_up_in_the_master_of_a_bf16_weight() -> None:
    module = nn.Linear(1, 1, bias=False).to(torch.bfloat16)
    module.weight.data.fill_(1.0)
    tuner = SparseTuner(module, {"weight": torch.tensor([0], dtype=torch.int32)})
    optimizer = torch.optim.SGD(tuner.parameters(), lr=1e-3)
    for _ in range(10):
        module(torch.ones(1, 1, dtype=torch.bfloat16)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        tuner.write()
    # One step of 1e-3 is below half a unit of bf16 at 1; ten of them are not.
    assert module.weight.item() == 0.98828125
    assert torch.allclose(tuner.deltas()["weight"].values, torch.tensor([-0.01]), atol=1e-6)


def test_resume_equals_going_on() -> None:
    straight, first, second = net(), net(), net()
    indices = chosen(straight, "snip")
    tuner = SparseTuner(straight, indices)
    train_sparse(straight, tuner, OPTIMIZERS["adamw"](tuner.parameters()), loss, range(4))

    half = SparseTuner(first, indices)
    optimizer = OPTIMIZERS["adamw"](half.parameters())
    train_sparse(first, half, optimizer, loss, range(2))
    saved = copy.deepcopy((half.state_dict(), optimizer.state_dict()))
    train_sparse(first, half, optimizer, loss, range(2, 3))

    resumed = SparseTuner(second, indices)
    optimizer = OPTIMIZERS["adamw"](resumed.parameters())
    resumed.load_state_dict(saved[0])
    optimizer.load_state_dict(saved[1])
    train_sparse(second, resumed, optimizer, loss, range(2, 4))
    assert torch.equal(resumed.values, tuner.values)
    for name, weight in straight.named_parameters():
        assert torch.equal(weight, second.get_parameter(name))


def test_states_of_earlier_versions_still_fit() -> None:
    some = torch.tensor([1, 4], dtype=torch.int32)
    module = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
    for number, weight in enumerate(module.parameters()):
        weight.data.fill_(number + 1)
    tuner = SparseTuner(module, {"0.weight": some, "1.weight": some})
    # Pinned: with another layout no stored run could be resumed.
    assert tuner.state_dict()["layout"].startswith("d5361f933e9d4b9a")


def test_resume_elsewhere_is_refused() -> None:
    module = net()
    indices = chosen(module, "rand")
    state = SparseTuner(net(), indices).state_dict()
    other_base = net()
    other_base.first.weight.data += 1.0
    others = [
        SparseTuner(net(), chosen(module, "wm")),
        SparseTuner(net(), {"first.weight": indices["first.weight"]}),
        SparseTuner(other_base, indices),
    ]
    for tuner in others:
        before = tuner.values.detach().clone()
        for wrong in (state, {}, {"layout": state["layout"]}):
            with pytest.raises(MismatchError, match="another base"):
                tuner.load_state_dict(wrong)
        assert torch.equal(tuner.values, before)


def test_an_adapter_gives_the_trained_weights() -> None:
    module = net(torch.bfloat16)
    tuner = SparseTuner(module, chosen(net(), "rand"))
    train_sparse(module, tuner, OPTIMIZERS["momentum"](tuner.parameters()), loss, range(3))
    trained = {name: weight.detach().clone() for name, weight in module.named_parameters()}
    deltas = tuner.deltas()
    tuner.close()
    switcher = AdapterSwitcher(module)
    switcher.add("trained", Adapter(deltas, AdapterInfo("trained")))
    switcher.set({"trained": 1.0})
    for name, weight in module.named_parameters():
        assert torch.equal(weight.detach(), trained[name])


def test_what_cannot_be_tuned_is_refused_and_changes_nothing() -> None:
    module = net()
    some = torch.tensor([0, 1], dtype=torch.int32)
    with pytest.raises(SettingError, match="no weight to train"):
        SparseTuner(module, {})
    with pytest.raises(MismatchError, match=r"'fist\.weight'.*'first\.weight'"):
        SparseTuner(module, {"first.weight": some, "fist.weight": some})
    with pytest.raises(DeltaError, match=r"'first\.weight'.*sorted"):
        SparseTuner(module, {"first.weight": some.flip(0)})
    with pytest.raises(DeltaError, match="204 entries"):
        SparseTuner(module, {"first.weight": some + 203})
    with pytest.raises(MismatchError, match="float64"):
        SparseTuner(net(torch.float64), {"first.weight": some})
    with pytest.raises(MismatchError, match="meta"):
        SparseTuner(net().to("meta"), {"first.weight": some})
    assert all(weight.requires_grad for weight in module.parameters())


def test_a_diverged_training_is_told_apart() -> None:
    module = net()
    tuner = SparseTuner(module, chosen(module, "rand"))
    with torch.no_grad():
        tuner.values.fill_(math.nan)
    with pytest.raises(DeltaError, match=r"conv\.weight.*diverged"):
        tuner.deltas()
