"""The denoising loss of a base, as its scheduler says that it was trained."""

from dataclasses import dataclass

import torch
from diffusers import DDPMScheduler, StableDiffusionXLPipeline
from torch import Tensor, nn
from torch.nn import functional as F

from training.batches import Batch
from training.errors import TrainingError
from training.machine import Machine


@dataclass(frozen=True, eq=False)
class Objective:
    """Mean squared error of the predicted noise or velocity (https://arxiv.org/abs/2202.00512)."""

    unet: nn.Module
    scheduler: DDPMScheduler
    machine: Machine

    @classmethod
    def of(cls, pipe: StableDiffusionXLPipeline, machine: Machine) -> "Objective":
        """Read the noise schedule and what is predicted from the pipeline's own scheduler."""
        scheduler = DDPMScheduler.from_config(pipe.scheduler.config)
        kind = scheduler.config.prediction_type
        if kind not in ("epsilon", "v_prediction"):
            raise TrainingError(
                f"The base predicts {kind}; training knows epsilon and v_prediction. Choose "
                "another base."
            )
        return cls(pipe.unet, scheduler, machine)

    @property
    def train_timesteps(self) -> int:
        """How many noise levels there are."""
        return int(self.scheduler.config.num_train_timesteps)

    def loss(self, batch: Batch) -> Tensor:
        """Return the weighted sum of the examples' mean squared errors, a scalar in fp32."""
        noisy = self.scheduler.add_noise(batch.latents, batch.noise, batch.timesteps)
        with self.machine.autocast():
            prediction = self.unet(
                noisy.to(self.machine.dtype),
                batch.timesteps,
                encoder_hidden_states=batch.prompt_embeds.to(self.machine.dtype),
                added_cond_kwargs={
                    "text_embeds": batch.pooled.to(self.machine.dtype),
                    "time_ids": batch.time_ids,
                },
                return_dict=False,
            )[0]
        errors = F.mse_loss(prediction.float(), self._target(batch), reduction="none")
        return torch.sum(batch.weights * errors.mean(dim=(1, 2, 3)))

    def _target(self, batch: Batch) -> Tensor:
        if self.scheduler.config.prediction_type == "epsilon":
            return batch.noise
        return self.scheduler.get_velocity(batch.latents, batch.noise, batch.timesteps)
