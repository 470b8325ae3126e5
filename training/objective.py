"""The denoising loss of a base, as its scheduler says that it was trained."""

from contextlib import nullcontext
from dataclasses import dataclass

import torch
from diffusers import DDPMScheduler, StableDiffusionXLPipeline
from torch import Tensor, nn
from torch.nn import functional as F

from training.batches import Batch
from training.errors import TrainingError
from training.machine import Machine
from training.offset_noise import with_offset
from training.snr import even_weights, min_snr_weights
from training.texts import Texts, kept


@dataclass(frozen=True, eq=False)
class Objective:
    """Mean squared error of the predicted noise or velocity (https://arxiv.org/abs/2202.00512).

    `level_weights` (timesteps,) says how much each noise level counts.
    """

    unet: nn.Module
    scheduler: DDPMScheduler
    machine: Machine
    level_weights: Tensor
    noise_offset: float
    mixed: bool
    texts: Texts

    @classmethod
    def of(
        cls,
        pipe: StableDiffusionXLPipeline,
        machine: Machine,
        *,
        min_snr_gamma: float = 0.0,
        noise_offset: float = 0.0,
        mixed: bool = False,
        texts: Texts = kept,
    ) -> "Objective":
        """Read the noise schedule and what is predicted from the pipeline's own scheduler.

        `mixed` says that values of another dtype than the base's take part in computing, which
        then is done under autocast. Without a `min_snr_gamma` all noise levels count the same.
        """
        scheduler = DDPMScheduler.from_config(pipe.scheduler.config)
        kind = scheduler.config.prediction_type
        if kind not in ("epsilon", "v_prediction"):
            raise TrainingError(
                f"The base predicts {kind}; training knows epsilon and v_prediction. Choose "
                "another base."
            )
        weights = (
            min_snr_weights(scheduler, min_snr_gamma) if min_snr_gamma else even_weights(scheduler)
        )
        return cls(
            pipe.unet, scheduler, machine, weights.to(machine.device), noise_offset, mixed, texts
        )

    @property
    def train_timesteps(self) -> int:
        """How many noise levels there are."""
        return int(self.scheduler.config.num_train_timesteps)

    def loss(self, batch: Batch) -> Tensor:
        """Return the weighted sum of the examples' mean squared errors, a scalar in fp32."""
        noise = with_offset(batch.noise, self.noise_offset) if self.noise_offset else batch.noise
        noisy = self.scheduler.add_noise(batch.latents, noise, batch.timesteps)
        # A network of one dtype goes without: autocast would do its norms in fp32 and cost the
        # host a look at every operation.
        with self.machine.autocast() if self.mixed else nullcontext():
            prompt_embeds, pooled = self.texts(batch)
            prediction = self.unet(
                noisy.to(self.machine.dtype),
                batch.timesteps,
                encoder_hidden_states=prompt_embeds.to(self.machine.dtype),
                added_cond_kwargs={
                    "text_embeds": pooled.to(self.machine.dtype),
                    "time_ids": batch.time_ids,
                },
                return_dict=False,
            )[0]
        errors = F.mse_loss(prediction.float(), self._target(batch, noise), reduction="none")
        if batch.shares is not None:
            errors = errors * batch.shares
        weights = batch.weights * self.level_weights[batch.timesteps]
        return torch.sum(weights * errors.mean(dim=(1, 2, 3)))

    def _target(self, batch: Batch, noise: Tensor) -> Tensor:
        if self.scheduler.config.prediction_type == "epsilon":
            return noise
        return self.scheduler.get_velocity(batch.latents, noise, batch.timesteps)
