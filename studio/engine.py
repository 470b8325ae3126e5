"""One base model, one lease: a picture gets exactly its own mix and leaves the base as it was."""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import StableDiffusionXLPipeline
from PIL import Image

from shira_diffusion import Adapter, AdapterSwitcher
from shira_diffusion.errors import SettingError
from studio.base import describe
from studio.errors import MemoryShortageError, StoppedError
from studio.infotext import AdapterUse, Record
from studio.library import AdapterLibrary, Entry, Stamp
from studio.recipe import Recipe
from studio.vocabulary import Vocabulary

CACHE_BYTES = 4 * 2**30
"""How much memory loaded adapters may hold before the least recently used ones are dropped."""


@dataclass(frozen=True)
class Step:
    """Sampling step `number` of `total` is done, `seconds` after the first one began."""

    number: int
    total: int
    seconds: float


@dataclass(frozen=True)
class Sample:
    """A finished picture, how it came to be, and remarks for the person who asked for it."""

    image: Image.Image
    record: Record
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Loaded:
    """An adapter in memory: which version of its file, how many bytes, the file's hash."""

    stamp: Stamp
    held: int
    sha256: str


class Engine:
    """Makes pictures, one at a time whoever asks; adapters come from `library` when first used."""

    def __init__(
        self,
        pipe: StableDiffusionXLPipeline,
        library: AdapterLibrary,
        name: str,
        vocabulary: Vocabulary | None = None,
    ) -> None:
        pipe.set_progress_bar_config(disable=True)
        self.base = describe(pipe, name, vocabulary)
        self._pipe = pipe
        self._library = library
        self._switcher = AdapterSwitcher(pipe)
        self._fingerprints = dict(self._switcher.fingerprints)
        self._loaded: OrderedDict[str, Loaded] = OrderedDict()
        self._lock = threading.Lock()

    def generate(
        self,
        recipe: Recipe,
        *,
        on_step: Callable[[Step], None] | None = None,
        stop: threading.Event | None = None,
    ) -> Sample:
        """Make the picture of `recipe`; the same recipe gives the same picture.

        `stop` is looked at after every sampling step. Raises `StoppedError`, or any `ShiraError`
        about the recipe or an adapter; the base is back, bit for bit, in every case.
        """
        stop = stop or threading.Event()
        self._check_size(recipe)
        entries = {name: self._library.find(name) for name in recipe.mix}
        with self._lock:
            _stop_here(stop)
            hashes = self._load(entries)
            began = time.perf_counter()
            with self._switcher.using(recipe.mix):
                switched_in = time.perf_counter()
                image = self._sample(recipe, on_step, stop)
                sampled = time.perf_counter()
            ended = time.perf_counter()
        switching = (switched_in - began) + (ended - sampled)
        uses = tuple(
            AdapterUse(name, strength, entries[name].info.method, hashes[name])
            for name, strength in recipe.mix.items()
        )
        record = Record(
            recipe=recipe,
            base=self.base.name,
            fingerprints=self._fingerprints,
            adapters=uses,
            sampler=self.base.sampler,
            switch_ms=round(switching * 1000, 3),
            sampling_s=round(sampled - switched_in, 3),
        )
        return Sample(image, record, self.remarks(recipe))

    def remarks(self, recipe: Recipe) -> tuple[str, ...]:
        """What its author should know of the prompt of `recipe`: cut short, unknown words."""
        tokenizer = self._pipe.tokenizer
        room = int(tokenizer.model_max_length)
        count = len(tokenizer(recipe.prompt).input_ids)
        too_long = (
            f"{self.base.name} reads about {room - 2} word pieces; "
            f"the last {count - room} of this prompt were left out."
        )
        remarks = [too_long] if count > room else []
        if self.base.vocabulary:
            hint = self.base.vocabulary.hint(recipe.prompt, *self._trigger_words(recipe))
            remarks += [hint] if hint else []
        return tuple(remarks)

    def _sample(
        self, recipe: Recipe, on_step: Callable[[Step], None] | None, stop: threading.Event
    ) -> Image.Image:
        began = time.perf_counter()

        def after_step(
            _pipe: StableDiffusionXLPipeline, index: int, _time: Any, tensors: dict[str, Any]
        ) -> dict[str, Any]:
            _stop_here(stop)
            if on_step:
                on_step(Step(index + 1, recipe.steps, time.perf_counter() - began))
            return tensors

        try:
            output = self._pipe(
                prompt=recipe.prompt,
                negative_prompt=recipe.negative_prompt or None,
                num_inference_steps=recipe.steps,
                guidance_scale=float(recipe.guidance),
                width=recipe.width,
                height=recipe.height,
                # The noise is drawn on the CPU, so that a seed means the same on every device.
                generator=torch.Generator("cpu").manual_seed(recipe.seed),
                callback_on_step_end=after_step,
            )
        except torch.OutOfMemoryError as error:
            raise MemoryShortageError(
                f"{self.base.device} ran out of memory at {recipe.width} x {recipe.height} px. "
                "Choose a smaller size, or close other programs that use it."
            ) from error
        image: Image.Image = output.images[0]
        return image

    def _check_size(self, recipe: Recipe) -> None:
        if (recipe.width, recipe.height) not in self.base.sizes:
            known = ", ".join(f"{width} x {height}" for width, height in self.base.sizes)
            raise SettingError(
                f"{self.base.name} cannot make {recipe.width} x {recipe.height} px; "
                f"it makes {known}."
            )

    def _load(self, entries: Mapping[str, Entry]) -> dict[str, str]:
        """Bring the adapters of one mix into the switcher and return the hashes of their files."""
        for name, entry in entries.items():
            known = self._loaded.get(name)
            if known is None or known.stamp != entry.stamp:
                adapter = self._library.load(entry)
                self._drop(name)
                self._switcher.add(name, adapter)
                self._loaded[name] = Loaded(entry.stamp, _held_bytes(adapter), entry.sha256())
            self._loaded.move_to_end(name)
        unused = [name for name in self._loaded if name not in entries]
        while unused and sum(one.held for one in self._loaded.values()) > CACHE_BYTES:
            self._drop(unused.pop(0))
        return {name: self._loaded[name].sha256 for name in entries}

    def _drop(self, name: str) -> None:
        if self._loaded.pop(name, None):
            self._switcher.remove(name)

    def _trigger_words(self, recipe: Recipe) -> tuple[list[str], dict[str, tuple[str, ...]]]:
        """The trigger words of the recipe's mix, and those of every SHiRA adapter by title."""
        usable = self._library.usable
        mixed = [word for e in usable if e.name in recipe.mix for word in e.info.trigger_words]
        return mixed, {e.title: e.info.trigger_words for e in usable if not e.is_twin}


def _stop_here(stop: threading.Event) -> None:
    if stop.is_set():
        raise StoppedError("Stopped. The base model is back as it was.")


def _held_bytes(adapter: Adapter) -> int:
    return sum(delta.nbytes for delta in adapter.deltas.values())
