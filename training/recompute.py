"""Gradient checkpointing: activations are computed twice instead of kept."""

from functools import partial

from diffusers import UNet2DConditionModel
from torch.utils.checkpoint import checkpoint

# Nothing in these networks is random, so no random state has to be the same the second time; to
# save and set it, and to compare what is computed, costs each of hundreds of blocks its time.
_recompute = partial(
    checkpoint, use_reentrant=False, preserve_rng_state=False, determinism_check="none"
)


def keep_little(unet: UNet2DConditionModel) -> None:
    """Have `unet` keep the inputs of its blocks alone (https://arxiv.org/abs/1604.06174)."""
    unet.enable_gradient_checkpointing(_recompute)
