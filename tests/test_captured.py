"""A captured pass gives the gradients of an eager one, wherever the values have moved since."""

import pytest
import torch
from torch import Tensor, nn

from shira_diffusion import masks
from shira_diffusion.captured import CapturedPass, _compare
from shira_diffusion.errors import CaptureError, SettingError, ShiraError
from shira_diffusion.tune import SparseTuner


def tuned(device: str, *, compiled: bool = False) -> tuple[nn.Module, SparseTuner]:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 8)).to(device)
    indices = {
        name: masks.rand(weight.shape, 20, masks.layer_generator(0, name))
        for name, weight in module.named_parameters()
        if weight.dim() == 2
    }
    if compiled:
        module.compile()
    return module, SparseTuner(module, indices)


def batch(number: int, device: str) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(number)
    pair = torch.randn(2, 4, 8, generator=generator).to(device)
    return {"inputs": pair[0], "targets": pair[1]}


def capture(module: nn.Module, tuner: SparseTuner, device: str) -> CapturedPass:
    def loss(inputs: Tensor, targets: Tensor) -> Tensor:
        return nn.functional.mse_loss(module(inputs), targets)

    return CapturedPass(tuner, loss, batch(99, device))


def test_there_is_no_cuda_graph_without_cuda() -> None:
    module, tuner = tuned("cpu")
    with pytest.raises(SettingError, match="cpu"):
        capture(module, tuner, "cpu")


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("replayed", "launched", "right"),
    [
        (1.0, 1.0, True),
        (1.04, 1.0, True),
        (1.06, 1.0, False),
        (NAN, 1.0, False),
        (INF, 1.0, False),
        (NAN, 0.0, False),
        (1.0, 0.0, False),
        (0.0, 0.0, True),
        (1.0, NAN, True),
        (1.0, INF, True),
    ],
)
def test_a_replay_is_compared_with_a_launched_pass(
    replayed: float, launched: float, right: bool
) -> None:
    same = torch.tensor([3.0, 4.0])
    loss = torch.tensor(replayed), torch.tensor(launched)
    if right:
        _compare([loss, (same, same)])
        return
    with pytest.raises(CaptureError, match="other numbers"):
        _compare([loss, (same, same)])


@pytest.mark.gpu
@pytest.mark.parametrize("compiled", [False, True])
def test_captured_training_equals_eager_training(compiled: bool) -> None:
    results = []
    for captured in (False, True):
        module, tuner = tuned("cuda", compiled=compiled)
        optimizer = torch.optim.AdamW(tuner.parameters(), lr=0.05, weight_decay=0.0)
        run = capture(module, tuner, "cuda") if captured else None
        losses = []
        for step in range(6):
            # Two batches a step, so that what is there is added to.
            for micro in range(2):
                given = batch(2 * step + micro, "cuda")
                if run:
                    losses.append(run(**given).clone())
                else:
                    loss = nn.functional.mse_loss(module(given["inputs"]), given["targets"])
                    loss.backward()
                    losses.append(loss.detach())
            optimizer.step()
            optimizer.zero_grad(set_to_none=step % 2 == 0)
            tuner.write()
        results.append((torch.stack(losses), tuner.values.detach()))
    (eager_losses, eager), (captured_losses, values) = results
    torch.testing.assert_close(captured_losses, eager_losses)
    torch.testing.assert_close(values, eager)


@pytest.mark.gpu
def test_capturing_leaves_the_gradient_as_it_was() -> None:
    module, tuner = tuned("cuda")
    tuner.hold_gradient().fill_(3.0)
    capture(module, tuner, "cuda")
    assert tuner.values.grad is not None
    assert (tuner.values.grad == 3.0).all()


@pytest.mark.gpu
def test_what_was_not_captured_is_refused() -> None:
    module, tuner = tuned("cuda")
    run = capture(module, tuner, "cuda")
    given = batch(0, "cuda")
    with pytest.raises(SettingError, match=r"captured for .*\(4, 8\)"):
        run(inputs=given["inputs"][:2], targets=given["targets"])
    tuner.values.grad = torch.zeros_like(tuner.values)
    with pytest.raises(ShiraError, match="in place"):
        run(**given)
