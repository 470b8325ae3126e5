"""Which entries of the UNet a sparse adapter trains, as a run's settings say."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from shira_diffusion import Adapter, budgets, masks
from shira_diffusion.components import canonical_name
from shira_diffusion.errors import MismatchError
from training.config import Config
from training.methods.base import Gradients

UNET = "unet"
"""Where the UNet is in a pipeline."""


def choose_indices(
    config: Config,
    weights: Mapping[str, nn.Parameter],
    gradients: Gradients,
    place: str = UNET,
) -> dict[str, Tensor]:
    """Return which entries of each weight of the module at `place` to train.

    They are the same for the same settings.

    The adapter's name takes part in the seed: random masks of two adapters overlap by chance only.
    No entry is one that an adapter of the setting `avoid` has. A weight may get none in a global
    budget, and is left out then.
    """
    among = _taken(config.avoid, weights, place)
    # The UNet's names go without their place: so its masks stay what they always were.
    path = config.name if place == UNET else f"{config.name}/{place}"
    found = gradients(weights) if config.mask in ("grad", "snip") else {}

    def score(name: str) -> Tensor:
        return masks.score(config.mask, weights[name].detach().cpu(), found.get(name), among[name])

    counts = _counts(config, weights, among, score)
    return {
        name: masks.select(
            config.mask,
            weight.detach().cpu(),
            counts[name],
            generator=masks.layer_generator(config.seed, f"{path}/{name}"),
            gradient=found.get(name),
            # Each adapter of a row that avoid one another turns the diagonal one step further.
            offset=len(config.avoid),
            among=among[name],
        )
        for name, weight in weights.items()
        if counts[name]
    }


def _counts(
    config: Config,
    weights: Mapping[str, Tensor],
    among: Mapping[str, Sequence[Tensor]],
    score: Callable[[str], Tensor],
) -> dict[str, int]:
    sizes = {name: weight.numel() for name, weight in weights.items()}
    if config.budget == "layer":
        return {name: masks.count(size, config.density) for name, size in sizes.items()}
    total = masks.count(sum(sizes.values()), config.density)
    if config.mask in masks.SCORED:
        return budgets.by_score(sizes, score, total)
    taken = {name: torch.cat(list(some)).unique().numel() for name, some in among.items() if some}
    return budgets.by_size({name: sizes[name] - taken.get(name, 0) for name in sizes}, total)


def _taken(
    paths: Sequence[str], weights: Mapping[str, Tensor], place: str
) -> dict[str, list[Tensor]]:
    """The entries that the adapters of these files have in each weight."""
    among: dict[str, list[Tensor]] = {name: [] for name in weights}
    for path in paths:
        deltas = Adapter.load(path).deltas
        for name, weight in weights.items():
            delta = deltas.get(canonical_name(f"{place}.{name}"))
            if delta is None:
                continue
            if delta.shape != tuple(weight.shape):
                raise MismatchError(
                    f"avoid: {path} changes a weight {name!r} of shape {delta.shape}, but this "
                    f"base's has {tuple(weight.shape)}; name adapters of this base"
                )
            among[name].append(delta.entries().indices)
    return among
