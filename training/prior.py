"""Class images for prior preservation: what the base draws, so that training does not unlearn it.

As in DreamBooth (https://arxiv.org/abs/2208.12242).
"""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from filelock import FileLock

from training.data import CaptionedImage
from training.images import Size
from training.sampling import Sampler

# So many pixels are drawn at once: 8 pictures of the embedded base, one of SDXL.
_PIXELS_AT_ONCE = 8 * 128**2


@dataclass(frozen=True)
class Prior:
    """`count` class images, prompts in turn, with seeds from `seed` on.

    The run's seed has no part in them: runs that differ in it share what the base draws.
    """

    prompts: tuple[str, ...]
    count: int
    seed: int = 0

    def folder(self, cache: Path, base: str, sampler: Sampler) -> Path:
        """Return where the images of this base and these settings are kept, however many."""
        settings = self._settings(base, sampler)
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
        return cache / f"prior-{digest[:16]}"

    def turn(self, folder: Path) -> AbstractContextManager[object]:
        """Wait until no other run draws into `folder`, if anything is missing, and keep it."""
        if not self.missing(folder):
            return nullcontext()
        folder.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(folder.with_suffix(".lock"))

    def missing(self, folder: Path) -> list[int]:
        """Return the numbers of the images that `folder` does not have yet."""
        return [number for number in range(self.count) if not _path(folder, number).is_file()]

    def images(
        self, folder: Path, base: str, sampler: Sampler, on_done: Callable[[int], None]
    ) -> list[CaptionedImage]:
        """Return the class images; missing ones are drawn, and `on_done` is told how many are."""
        missing = self.missing(folder)
        if missing:
            folder.mkdir(parents=True, exist_ok=True)
            settings = json.dumps(self._settings(base, sampler), indent=2)
            (folder / "settings.json").write_text(settings + "\n", encoding="utf-8")
        at_once = max(1, _PIXELS_AT_ONCE // math.prod(sampler.size))
        for start in range(0, len(missing), at_once):
            numbers = missing[start : start + at_once]
            pictures = sampler.draw(
                [self._prompt(number) for number in numbers],
                [self.seed + number for number in numbers],
            )
            for number, picture in zip(numbers, pictures, strict=True):
                partial = _path(folder, number).with_suffix(f".{uuid4().hex}.partial")
                picture.save(partial, format="PNG")
                partial.replace(_path(folder, number))
            on_done(start + len(numbers))
        return [
            CaptionedImage.of(_path(folder, number), self._prompt(number), sampler.size)
            for number in range(self.count)
        ]

    def _prompt(self, number: int) -> str:
        return self.prompts[number % len(self.prompts)]

    def _settings(self, base: str, sampler: Sampler) -> dict[str, object]:
        return {
            "base": base,
            "prompts": self.prompts,
            "seed": self.seed,
            "steps": sampler.steps,
            "guidance": sampler.guidance,
            "size": sampler.size,
        }


def shared_out(count: int, sizes: Sequence[Size], prompts: Sequence[str]) -> dict[Size, int]:
    """Return how many of `count` class images are drawn in each of the training images' sizes.

    It is their share of the images, but enough for each prompt once where `count` allows that.
    """
    least = min(count, len(prompts))
    return {
        size: max(least, round(count * alike / len(sizes)))
        for size, alike in Counter(sizes).items()
    }


def _path(folder: Path, number: int) -> Path:
    return folder / f"{number:04d}.png"
