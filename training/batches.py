"""What each step trains on: a function of the seed and the step alone.

Nothing of it has to be saved for a run to resume exactly, the same step gives the same batch on any
device, and several processes that each take their share of it do the work of one.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from training.encode import Example
from training.machine import Machine


@dataclass(frozen=True, eq=False)
class Batch:
    """Examples with their noise; N of them, fp32 but for the integer timesteps."""

    latents: Tensor  # (N, 4, h, w)
    noise: Tensor  # (N, 4, h, w)
    timesteps: Tensor  # (N,)
    prompt_embeds: Tensor  # (N, tokens, width)
    pooled: Tensor  # (N, width)
    time_ids: Tensor  # (N, 6)
    weights: Tensor  # (N,), of each example's mean squared error in the loss


def seeded(seed: int, *where: int | str) -> torch.Generator:
    """Return a generator that depends on the seed and on where in the run it is used."""
    text = "/".join(str(part) for part in (seed, *where))
    digest = hashlib.sha256(text.encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8]) >> 1)


def in_turn(count: int, first: int, size: int, *, seed: int, name: str) -> list[int]:
    """Return places `first` to `first + size` of an endless series of shuffled rounds of `count`.

    Every item comes once a round, in an order that is new in each.
    """
    rounds: dict[int, list[int]] = {}
    places = []
    for place in range(first, first + size):
        number, offset = divmod(place, count)
        if number not in rounds:
            order = torch.randperm(count, generator=seeded(seed, name, number))
            rounds[number] = order.tolist()
        places.append(rounds[number][offset])
    return places


@dataclass(frozen=True)
class Batches:
    """Batches of instance images and, for prior preservation, of class images."""

    instances: Sequence[Example]
    classes: Sequence[Example]
    batch: int
    class_batch: int
    class_weight: float
    train_timesteps: int
    seed: int

    def draw(self, index: int, machine: Machine, *, purpose: str = "train") -> Batch:
        """Return this process' share of batch `index`; the shares' losses add up to the batch's."""
        chosen = self._pick(self.instances, self.batch, index, f"{purpose} instances")
        weights = [1 / self.batch] * self.batch
        if self.classes:
            chosen += self._pick(self.classes, self.class_batch, index, f"{purpose} classes")
            weights += [self.class_weight / self.class_batch] * self.class_batch
        generator = seeded(self.seed, purpose, "noise", index)
        shape = (len(chosen), *chosen[0].latents.shape)
        noise = torch.randn(shape, generator=generator)
        timesteps = torch.randint(self.train_timesteps, (len(chosen),), generator=generator)
        share = machine.share(len(chosen))
        mine = chosen[share]
        tensors = (
            torch.stack([example.latents for example in mine]),
            noise[share],
            timesteps[share],
            torch.stack([example.prompt_embeds for example in mine]),
            torch.stack([example.pooled for example in mine]),
            torch.stack([example.time_ids for example in mine]),
            torch.tensor(weights)[share],
        )
        return Batch(*(tensor.to(machine.device) for tensor in tensors))

    def _pick(self, examples: Sequence[Example], size: int, index: int, name: str) -> list[Example]:
        places = in_turn(len(examples), index * size, size, seed=self.seed, name=name)
        return [examples[place] for place in places]
