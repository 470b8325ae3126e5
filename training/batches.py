"""What each step trains on: a function of the seed and the step alone.

Nothing of it has to be saved for a run to resume exactly, the same step gives the same batch on any
device, and several processes that each take their share of it do the work of one.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

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
    captions: tuple[str, ...] = ()
    shares: Tensor | None = None  # (N, 1, h, w), how much each place counts; None is all alike

    def tensors(self) -> dict[str, Tensor]:
        """Return all but the captions, by name: what the UNet's training computes with."""
        return {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}


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


def bucket_in_turn(sizes: Sequence[int], place: int, *, seed: int, name: str) -> tuple[int, int]:
    """Return which bucket fills batch `place`, and how many batches it has filled before.

    In a round of as many batches as there are images each bucket fills as many as it has images:
    so every image is seen as often as any other, whatever the buckets' sizes.
    """
    owners = [bucket for bucket, size in enumerate(sizes) for _ in range(size)]
    number, offset = divmod(place, len(owners))
    so_far = in_turn(len(owners), place - offset, offset + 1, seed=seed, name=name)
    drawn = [owners[owner] for owner in so_far]
    bucket = drawn[-1]
    return bucket, number * sizes[bucket] + drawn.count(bucket) - 1


@dataclass(frozen=True)
class Batches:
    """Batches of instance images and, for prior preservation, of class images.

    All latents of a batch have one shape; there are class images of every shape of the instances.
    """

    instances: Sequence[Example]
    classes: Sequence[Example]
    batch: int
    class_batch: int
    class_weight: float
    train_timesteps: int
    seed: int

    def draw(self, index: int, machine: Machine, *, purpose: str = "train") -> Batch:
        """Return this process' share of batch `index`; the shares' losses add up to the batch's."""
        chosen, weights = self._choose(index, purpose)
        generator = seeded(self.seed, purpose, "noise", index)
        shape = (len(chosen), *chosen[0].latents.shape)
        noise = torch.randn(shape, generator=generator)
        timesteps = torch.randint(self.train_timesteps, (len(chosen),), generator=generator)
        share = machine.share(len(chosen))
        mine = chosen[share]
        shares = _shares(mine)
        return Batch(
            machine.bring(torch.stack([example.latents for example in mine])),
            machine.bring(noise[share]),
            machine.bring(timesteps[share]),
            machine.bring(torch.stack([example.prompt_embeds for example in mine])),
            machine.bring(torch.stack([example.pooled for example in mine])),
            machine.bring(torch.stack([example.time_ids for example in mine])),
            machine.bring(torch.tensor(weights)[share]),
            tuple(example.caption for example in mine),
            None if shares is None else machine.bring(shares),
        )

    def _choose(self, index: int, purpose: str) -> tuple[list[Example], list[float]]:
        buckets = list(self._instances_by_shape.values())
        sizes = [len(bucket) for bucket in buckets]
        number, turn = bucket_in_turn(sizes, index, seed=self.seed, name=f"{purpose} buckets")
        bucket = buckets[number]
        # The first bucket, which mostly is the only one, needs no name.
        suffix = f" {number}" if number else ""
        chosen = self._pick(bucket, self.batch, turn, f"{purpose} instances{suffix}")
        weights = [1 / self.batch] * self.batch
        if self.classes:
            alike = self._classes_by_shape[bucket[0].latents.shape]
            chosen += self._pick(alike, self.class_batch, turn, f"{purpose} classes{suffix}")
            weights += [self.class_weight / self.class_batch] * self.class_batch
        return chosen, weights

    def _pick(self, examples: Sequence[Example], size: int, turn: int, name: str) -> list[Example]:
        """Take the next `size` examples, each in one of its views."""
        places = in_turn(len(examples), turn * size, size, seed=self.seed, name=name)
        generator = seeded(self.seed, name, "views", turn)
        chosen = []
        for place in places:
            views = (examples[place], *examples[place].others)
            chosen.append(views[int(torch.randint(len(views), (), generator=generator))])
        return chosen

    @cached_property
    def _instances_by_shape(self) -> dict[torch.Size, list[Example]]:
        return _by_shape(self.instances)

    @cached_property
    def _classes_by_shape(self) -> dict[torch.Size, list[Example]]:
        return _by_shape(self.classes)


def _by_shape(examples: Sequence[Example]) -> dict[torch.Size, list[Example]]:
    """Group examples by the shape of their latents, in the order in which they come."""
    groups: dict[torch.Size, list[Example]] = {}
    for example in examples:
        groups.setdefault(example.latents.shape, []).append(example)
    return groups


def _shares(examples: Sequence[Example]) -> Tensor | None:
    """Stack how much each place counts; None when all count alike."""
    if all(example.shares is None for example in examples):
        return None
    ones = torch.ones(1, *examples[0].latents.shape[1:])
    return torch.stack([ones if one.shares is None else one.shares for one in examples])
