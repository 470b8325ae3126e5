"""The loss and whole steps against plain, slow ones written from the papers' formulas."""

import copy
import dataclasses
import math

import pytest
import torch
from diffusers import DDPMScheduler, StableDiffusionXLPipeline
from torch import Tensor, nn
from training_toys import CPU, make_batches, no_gradients, settings

from shira_diffusion.pipeline import target_weights
from training import methods
from training.batches import Batch
from training.loop import Loop
from training.objective import Objective
from training.offset_noise import with_offset
from training.snr import even_weights, min_snr_weights

# The toy's layers are too small to share between cores: on busy ones that costs minutes.
torch.set_num_threads(1)


def plain_levels(scheduler: DDPMScheduler, *, zero_snr: bool) -> list[tuple[float, float]]:
    """Alpha and sigma of every noise level, in double precision, one level at a time."""
    low, high = scheduler.config.beta_start**0.5, scheduler.config.beta_end**0.5
    alphas, product = [], 1.0
    for level in range(1000):
        product *= 1 - (low + (high - low) * level / 999) ** 2
        alphas.append(math.sqrt(product))
    if zero_snr:  # arXiv 2305.08891, algorithm 1
        first, last = alphas[0], alphas[-1]
        alphas = [(alpha - last) * first / (first - last) for alpha in alphas]
    return [(alpha, math.sqrt(1 - alpha**2)) for alpha in alphas]


def plain_weight(alpha: float, sigma: float, gamma: float, prediction: str) -> float:
    """Min-SNR-gamma's weight: the clean latents' error counts min(SNR, gamma)."""
    if not gamma:
        return 1.0
    if prediction == "v_prediction":  # |x error|^2 = sigma^2 |v error|^2, SNR + 1 = 1 / sigma^2
        return min(alpha**2 / sigma**2, gamma) * sigma**2
    if alpha == 0.0:
        return 1.0
    return min(alpha**2 / sigma**2, gamma) * sigma**2 / alpha**2


def plain_loss(
    unet: nn.Module,
    batch: Batch,
    levels: list[tuple[float, float]],
    prediction: str,
    gamma: float = 0.0,
) -> Tensor:
    """DreamBooth's loss, one example at a time."""
    total = torch.zeros(())
    for row in range(len(batch.timesteps)):
        alpha, sigma = levels[int(batch.timesteps[row])]
        clean, noise = batch.latents[row : row + 1], batch.noise[row : row + 1]
        output = unet(
            alpha * clean + sigma * noise,
            batch.timesteps[row : row + 1],
            encoder_hidden_states=batch.prompt_embeds[row : row + 1],
            added_cond_kwargs={
                "text_embeds": batch.pooled[row : row + 1],
                "time_ids": batch.time_ids[row : row + 1],
            },
        ).sample
        target = noise if prediction == "epsilon" else alpha * noise - sigma * clean
        error = (output - target).square().mean()
        weight = plain_weight(alpha, sigma, gamma, prediction)
        # Two instances share weight 1, the one class image has its own weight.
        total = total + (0.5 if row < 2 else 0.7) * weight * error
    return total


def predicting(pipe: StableDiffusionXLPipeline, prediction: str, *, zero_snr: bool) -> None:
    scheduler = type(pipe.scheduler).from_config(
        pipe.scheduler.config, prediction_type=prediction, rescale_betas_zero_snr=zero_snr
    )
    pipe.register_modules(scheduler=scheduler)


@pytest.mark.parametrize("method", ["shira", "lora"])
@pytest.mark.parametrize(
    ("prediction", "zero_snr", "gamma"),
    [("epsilon", False, 0.0), ("v_prediction", True, 0.0), ("epsilon", False, 5.0)],
)
def test_the_first_ten_steps_equal_a_plain_loop(
    toy_pipe: StableDiffusionXLPipeline,
    method: str,
    prediction: str,
    zero_snr: bool,
    gamma: float,
) -> None:
    predicting(toy_pipe, prediction, zero_snr=zero_snr)
    batches = make_batches(toy_pipe)
    decay = 0.01 if method == "lora" else 0.0
    config = settings(
        method=method, density=1.0, rank=4, steps=10, schedule="linear", weight_decay=decay
    )
    reference = copy.deepcopy(toy_pipe.unet).requires_grad_(False)
    if method == "lora":
        methods.create(config, reference, no_gradients, None)
        values = [value for name, value in reference.named_parameters() if "lora_" in name]
    else:
        values = list(target_weights(reference, ["attention"]).values())
        for value in values:
            value.requires_grad_(True)

    trained = methods.create(config, toy_pipe.unet, no_gradients, None)
    objective = Objective.of(toy_pipe, CPU, min_snr_gamma=gamma)
    results = list(Loop(config, trained, objective, batches, CPU).run())

    levels = plain_levels(toy_pipe.scheduler, zero_snr=zero_snr)
    optimizer = torch.optim.AdamW(values, lr=config.lr, weight_decay=decay)
    for step, result in enumerate(results):
        rate = config.lr * (10 - step) / 10
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = plain_loss(reference, batches.draw(step, CPU), levels, prediction, gamma)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(values, 0.5)
        optimizer.step()
        assert result.loss == pytest.approx(loss.item(), rel=1e-5)
        assert result.lr == pytest.approx(rate)
    assert len(results) == 10
    live = dict(toy_pipe.unet.named_parameters())
    for name, weight in reference.named_parameters():
        # Where a gradient is nearly 0, Adam turns its rounding into a part of a step.
        torch.testing.assert_close(live[name], weight, rtol=0, atol=0.05 * config.lr)


@pytest.mark.parametrize("gamma", [1e-3, 1.0, 5.0, 1e6])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("zero_snr", [False, True])
def test_min_snr_weighs_every_noise_level(
    toy_pipe: StableDiffusionXLPipeline, prediction: str, zero_snr: bool, gamma: float
) -> None:
    predicting(toy_pipe, prediction, zero_snr=zero_snr)
    scheduler = Objective.of(toy_pipe, CPU).scheduler
    found = min_snr_weights(scheduler, gamma)
    levels = plain_levels(toy_pipe.scheduler, zero_snr=zero_snr)
    plain = [plain_weight(alpha, sigma, gamma, prediction) for alpha, sigma in levels]
    # The scheduler's table is a product of up to 1000 numbers in fp32, small at the noisy end.
    torch.testing.assert_close(found, torch.tensor(plain), rtol=1e-3, atol=1e-6)
    assert even_weights(scheduler).tolist() == [1.0] * 1000


def test_offset_noise_has_the_covariance_of_the_sum_of_two_draws() -> None:
    height, width, strength = 3, 4, 0.3
    # The images of all unit vectors are the columns of the map that is applied to white noise.
    units = torch.eye(2 * height * width, dtype=torch.float64).reshape(-1, 2, height, width)
    columns = with_offset(units, strength).flatten(1).T
    covariance = columns @ columns.T
    for left in range(2 * height * width):
        for right in range(2 * height * width):
            same_channel = left // (height * width) == right // (height * width)
            expected = float(left == right) + strength**2 * same_channel
            assert covariance[left, right].item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_offset_noise_is_added_and_predicted(
    toy_pipe: StableDiffusionXLPipeline, prediction: str
) -> None:
    predicting(toy_pipe, prediction, zero_snr=False)
    batch = make_batches(toy_pipe).draw(0, CPU)
    loss = Objective.of(toy_pipe, CPU, noise_offset=0.4).loss(batch)
    noise = batch.noise.clone()
    for example in noise:
        for channel in example:
            channel += (math.sqrt(1 + 0.4**2 * 64) - 1) * channel.mean()
    levels = plain_levels(toy_pipe.scheduler, zero_snr=False)
    moved = dataclasses.replace(batch, noise=noise)
    expected = plain_loss(toy_pipe.unet, moved, levels, prediction)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert abs(loss.item() - Objective.of(toy_pipe, CPU).loss(batch).item()) > 1e-3
