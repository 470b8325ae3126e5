"""How much the error at each noise level counts, by the level's signal-to-noise ratio."""

import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr
from torch import Tensor


def even_weights(scheduler: DDPMScheduler) -> Tensor:
    """Return weights (timesteps,) that leave the loss as it is: every noise level counts 1."""
    return torch.ones(scheduler.config.num_train_timesteps)


def min_snr_weights(scheduler: DDPMScheduler, gamma: float) -> Tensor:
    """Return Min-SNR-gamma's weight (timesteps,) of every noise level's squared error.

    The error of the clean latents counts min(SNR, gamma); in the error that the base was trained
    on that is min(SNR, gamma) / SNR for epsilon and min(SNR, gamma) / (SNR + 1) for v-prediction.
    Pure noise (SNR 0, at the last level of a zero-terminal-SNR base) counts 1 for epsilon, by the
    limit, and 0 for v-prediction. Source: https://arxiv.org/abs/2303.09556, section 3.4.
    """
    snr = compute_snr(scheduler, torch.arange(scheduler.config.num_train_timesteps))
    if scheduler.config.prediction_type == "v_prediction":
        return snr.clamp(max=gamma) / (snr + 1)
    # Not min(snr, gamma) / snr, which is no number at SNR 0.
    return (gamma / snr).clamp(max=1)
