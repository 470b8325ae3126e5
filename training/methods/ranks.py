"""How many values the low-rank methods train at a rank, and the rank that a sparse adapter has."""

from collections.abc import Callable, Iterable

from torch import Tensor

from shira_diffusion import masks

Count = Callable[[Tensor, int], int]
"""Says how many values a method trains for a weight (out, in, ...) at a rank; linear in it."""


def lora_count(weight: Tensor, rank: int) -> int:
    """Count LoRA's two factors."""
    return rank * (weight.shape[0] + weight[0].numel())


def dora_count(weight: Tensor, rank: int) -> int:
    """Count LoRA's two factors and a magnitude for each row."""
    return lora_count(weight, rank) + weight.shape[0]


def symlora_count(weight: Tensor, rank: int) -> int:
    """Count the one factor, as long as the weight's longer side, and the eigenvalues."""
    return rank * (max(weight.shape[0], weight[0].numel()) + 1)


def matching_rank(weights: Iterable[Tensor], density: float, count: Count) -> int:
    """Return the rank, at least 1, whose number of values is nearest to a sparse adapter's."""
    weights = list(weights)
    sparse = sum(masks.count(weight.numel(), density) for weight in weights)
    fixed = sum(count(weight, 0) for weight in weights)
    per_rank = sum(count(weight, 1) for weight in weights) - fixed
    return max(1, round((sparse - fixed) / per_rank))
