"""Gradients of whole weights on a few batches, for the masks that score entries by them."""

from collections.abc import Mapping

from torch import Tensor, nn

from shira_diffusion.scores import summed_gradients
from training.batches import Batches
from training.machine import Machine
from training.objective import Objective


def gradients(
    weights: Mapping[str, nn.Parameter],
    objective: Objective,
    batches: Batches,
    count: int,
    machine: Machine,
) -> dict[str, Tensor]:
    """Return the summed gradients of `weights` over `count` calibration batches, fp32 on the CPU.

    Each weight's gradient leaves the device as soon as it is there.
    Every process of a run does all of it: the masks must be the same in all.
    """
    with summed_gradients(weights) as totals:
        for index in range(count):
            objective.loss(batches.draw(index, machine.alone(), purpose="calibration")).backward()
    return totals
