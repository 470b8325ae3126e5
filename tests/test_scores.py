"""Summed gradients equal those of ordinary backward passes, and leave nothing behind."""

import pytest
import torch
from torch import nn

from shira_diffusion.scores import summed_gradients


def net(dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_are_summed_in_fp32(dtype: torch.dtype) -> None:
    module, reference = net(dtype), net(dtype)
    module.requires_grad_(False)
    module[0].bias.requires_grad_(True)
    weights = {name: module.get_parameter(name) for name in ("0.weight", "2.weight", "0.bias")}
    expected = {name: torch.zeros(weight.shape) for name, weight in weights.items()}
    with summed_gradients(weights) as totals:
        for batch in range(3):
            inputs = torch.randn(4, 5, generator=torch.Generator().manual_seed(batch)).to(dtype)
            module(inputs).square().sum().backward()
            assert all(weight.grad is None for weight in weights.values())
            reference(inputs).square().sum().backward()
            for name in expected:
                gradient = reference.get_parameter(name).grad
                assert gradient is not None
                expected[name] += gradient.float()
            reference.zero_grad()
    for name, wanted in expected.items():
        assert torch.equal(totals[name], wanted)
    assert [name for name, weight in weights.items() if weight.requires_grad] == ["0.bias"]


def test_a_pass_that_fails_takes_its_hooks_along() -> None:
    module = net(torch.float32)
    weights = dict(module.named_parameters())
    with pytest.raises(RuntimeError), summed_gradients(weights) as totals:
        module(torch.ones(1, 4))
    module(torch.ones(1, 5)).sum().backward()
    assert not any(total.any() for total in totals.values())
    assert all(weight.grad is not None for weight in weights.values())
