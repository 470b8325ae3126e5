"""What the methods compute and write, against plain formulas, diffusers and our own loader."""

import copy
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from torch import Tensor, nn
from training_toys import CPU, make_batches, no_gradients, settings

from shira_diffusion import AdapterInfo, AdapterSwitcher, masks
from shira_diffusion.fingerprint import fingerprint
from shira_diffusion.formats import lora as lora_format
from shira_diffusion.pipeline import target_weights
from training import methods
from training.loop import Loop
from training.methods.content import write
from training.methods.ranks import Count, dora_count, lora_count, matching_rank, symlora_count
from training.methods.shira_dora import ShiraDora
from training.methods.symlora import SymLora
from training.objective import Objective

# The toy's layers are too small to share between cores: on busy ones that costs minutes.
torch.set_num_threads(1)


def fresh(base: Path) -> StableDiffusionXLPipeline:
    pipe = StableDiffusionXLPipeline.from_pretrained(base, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def latents(pipe: StableDiffusionXLPipeline) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    output = pipe("a castle", num_inference_steps=2, generator=generator, output_type="latent")
    return output.images


@pytest.mark.parametrize(
    ("method", "count"),
    [("lora", lora_count), ("dora", dora_count), ("symlora", symlora_count)],
)
def test_rank_matches_the_sparse_parameter_count(
    toy_pipe: StableDiffusionXLPipeline, method: str, count: Count
) -> None:
    weights = target_weights(toy_pipe.unet, ["attention", "conv"])
    sparse = sum(masks.count(weight.numel(), 0.3) for weight in weights.values())

    def size(rank: int) -> int:
        config = settings(method=method, rank=rank, targets=("attention", "conv"))
        created = methods.create(config, copy.deepcopy(toy_pipe.unet), no_gradients, None)
        return sum(value.numel() for value in created.parameters())

    rank = matching_rank(weights.values(), 0.3, count)
    distance = {near: abs(size(near) - sparse) for near in (rank - 1, rank, rank + 1) if near}
    assert min(distance, key=distance.__getitem__) == rank
    assert size(rank) == sum(count(weight, rank) for weight in weights.values())
    assert matching_rank(weights.values(), 1e-9, count) == 1


@pytest.mark.parametrize("method", ["lora", "dora", "symlora"])
def test_low_rank_file_is_the_trained_model_to_diffusers(
    toy_base: Path, tmp_path: Path, method: str
) -> None:
    pipe = fresh(toy_base)
    base = latents(pipe)
    info = AdapterInfo(
        name="x",
        method=method,
        trigger_words=("sks",),
        base_fingerprint={"unet": fingerprint(pipe.unet)},
    )
    config = settings(
        method=method, rank=3, alpha=6.0, lr=3e-2, steps=6, targets=("attention", "conv")
    )
    trained = methods.create(config, pipe.unet, no_gradients, None)
    list(Loop(config, trained, Objective.of(pipe, CPU), make_batches(pipe), CPU).run())
    live = latents(pipe)
    assert (live - base).abs().max() > 0.05
    path = tmp_path / "adapter.safetensors"
    write({"unet": trained.content()}, path, info)

    plain = fresh(toy_base)
    plain.load_lora_weights(path)
    by_diffusers = latents(plain)
    torch.testing.assert_close(by_diffusers, live, rtol=1e-2, atol=1e-2)
    if method == "dora":
        return

    ours = fresh(toy_base)
    adapter = lora_format.load(path)
    assert adapter.info.trigger_words == ("sks",)
    switcher = AdapterSwitcher(ours)
    switcher.add("x", adapter)
    switcher.set({"x": 1.0})
    torch.testing.assert_close(by_diffusers, latents(ours), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(4, 4), (2, 4)),
        (nn.Linear(5, 3), (2, 5)),
        (nn.Linear(3, 5, bias=False), (2, 6, 3)),
        (nn.Conv2d(3, 4, 3, stride=2, padding=1), (2, 3, 6, 6)),
        (nn.Conv2d(2, 40, 3, padding=1), (1, 2, 4, 4)),
    ],
)
def test_symlora_adds_the_corner_of_a_symmetric_matrix(
    layer: nn.Module, shape: tuple[int, ...]
) -> None:
    module = nn.Sequential(layer).requires_grad_(False)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    before, changed = module(x), copy.deepcopy(layer)
    method = SymLora(module, {"0.weight": layer.weight}, 2, seed=0)
    assert torch.equal(module(x), before)
    q, eigenvalues = method.parameters()
    with torch.no_grad():
        eigenvalues.copy_(torch.tensor([0.7, -1.3]))
    matrix = changed.weight.flatten(1)
    assert q.shape == (max(matrix.shape), 2)
    for row in range(matrix.shape[0]):
        for column in range(matrix.shape[1]):
            for k in range(2):
                matrix[row, column] += (q[row, k] * eigenvalues[k] * q[column, k]).item()
    torch.testing.assert_close(module(x), changed(x))
    method.close()
    assert torch.equal(module(x), before)


def plain_dora_entries(
    base: Tensor, mask: Tensor, magnitude: Tensor, down: Tensor, up: Tensor, scale: float
) -> Tensor:
    """The weight of SHiRA over a DoRA, row by row."""
    rows = []
    for row in range(len(base)):
        direction = base[row] + scale * sum(up[row, k] * down[k] for k in range(len(down)))
        length = direction.detach().square().sum().sqrt()
        rows.append(torch.where(mask[row], magnitude[row] * direction / length, base[row]))
    return torch.stack(rows)


@pytest.mark.parametrize("density", [0.1, 1.0])
def test_shira_dora_trains_as_a_masked_dora_does(
    toy_pipe: StableDiffusionXLPipeline, density: float
) -> None:
    reference = copy.deepcopy(toy_pipe.unet).requires_grad_(False)
    batches = make_batches(toy_pipe)
    config = settings(method="shira-dora", rank=3, alpha=6.0, density=density, accumulation=2)
    method = methods.create(config, toy_pipe.unet, no_gradients, None)
    indices = method.state()["indices"]
    parts = [part.detach().clone().requires_grad_(True) for part in method.parameters()]
    results = list(Loop(config, method, Objective.of(toy_pipe, CPU), batches, CPU).run())

    bases = {name: reference.get_parameter(name).clone() for name in indices}
    chosen = {
        name: torch.zeros(base.numel(), dtype=torch.bool)
        .index_fill(0, indices[name].long(), value=True)
        .reshape(base.shape)
        for name, base in bases.items()
    }

    def weights() -> dict[str, Tensor]:
        return {
            name: plain_dora_entries(base, chosen[name], *parts[3 * place : 3 * place + 3], 2.0)
            for place, (name, base) in enumerate(bases.items())
        }

    class Reparametrised(nn.Module):
        config = reference.config

        def forward(self, *args: object, **kwargs: object) -> object:
            return torch.func.functional_call(reference, weights(), args, kwargs)

    toy_pipe.unet, trained = Reparametrised(), toy_pipe.unet
    objective = Objective.of(toy_pipe, CPU)
    optimizer = torch.optim.AdamW(parts, lr=config.lr, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.steps)
    for step, result in enumerate(results):
        optimizer.zero_grad()
        losses = [objective.loss(batches.draw(2 * step + half, CPU)) / 2 for half in range(2)]
        sum(losses).backward()
        torch.nn.utils.clip_grad_norm_(parts, 0.5)
        optimizer.step()
        schedule.step()
        assert result.loss == pytest.approx(sum(losses).item(), rel=1e-5)
    moved = 0
    for name, weight in weights().items():
        live = trained.get_parameter(name)
        torch.testing.assert_close(live, weight.detach(), rtol=0, atol=0.05 * config.lr)
        assert torch.equal(live[~chosen[name]], bases[name][~chosen[name]])
        moved += int(((live - bases[name])[chosen[name]].abs() > 1e-4).sum())
    assert moved > 0.5 * sum(int(mask.sum()) for mask in chosen.values())


def test_shira_dora_starts_at_the_base_and_bears_a_row_of_zeros() -> None:
    layer = nn.Linear(4, 3, bias=False)
    with torch.no_grad():
        layer.weight[1] = 0.0
    base = layer.weight.detach().clone()
    every = torch.arange(12, dtype=torch.int32)
    method = ShiraDora(layer, {"weight": every}, 2, 2.0, seed=0)
    method.write()
    torch.testing.assert_close(layer.weight.detach(), base)
    layer(torch.ones(1, 4)).sum().backward()
    method.gather()
    assert all(bool(part.grad.isfinite().all()) for part in method.parameters())
    method.close()
    assert torch.equal(layer.weight, base)
