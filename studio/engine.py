"""One base model, one lease: a picture gets exactly its own mix and leaves the base as it was."""

import copy
import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from diffusers import StableDiffusionXLPipeline
from PIL import Image

from shira_diffusion import AdapterSwitcher
from shira_diffusion.errors import SettingError, ShiraError
from shira_diffusion.residency import Residency
from shira_diffusion.schedule import StepCallback, scheduled
from shira_diffusion.words import Lexicon
from studio.base import describe
from studio.errors import MemoryShortageError
from studio.infotext import AdapterUse, Record
from studio.library import AdapterLibrary, Entry
from studio.loaded import LoadedAdapters
from studio.newwords import word_sha256, words_of
from studio.preview import Preview, watch_prediction
from studio.recipe import Recipe
from studio.samplers import Samplers
from studio.steps import Step, Steps
from studio.timing import schedule
from studio.vocabulary import Vocabulary

HOST_BYTES = 4 * 2**30
"""How much memory loaded adapters may hold; the least recently used beyond that go to disk."""
DEVICE_BYTES = 2 * 2**30
"""The same for their copies on an accelerator."""
AHEAD_BYTES = 2**30
"""How much of the library (bytes on disk) is loaded before anybody asks."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sample:
    """A finished picture, how it came to be, and remarks for the person who asked for it."""

    image: Image.Image
    record: Record
    remarks: tuple[str, ...] = ()


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
        self.library = library
        self._samplers = Samplers(pipe.scheduler)
        self.base = describe(pipe, name, self._samplers.names, vocabulary)
        self._pipe = pipe
        # Fast tokenizers keep padding and truncation as state, and the pipeline sets its own.
        self._counter = copy.deepcopy(pipe.tokenizer)
        self._counting = threading.Lock()
        self._preview = Preview(pipe.vae)
        residency = Residency(host_bytes=HOST_BYTES, device_bytes=DEVICE_BYTES)
        self._switcher = AdapterSwitcher(pipe, residency)
        self._loaded = LoadedAdapters(self._switcher, library)
        self._lexicon = Lexicon(pipe)
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
        entries = self.check(recipe)
        steps = Steps(recipe.steps, stop, on_step, self._preview)
        mixes = schedule(recipe.mix, recipe.timing)
        words = words_of(entries, recipe.mix)
        word_hashes = {one.owner: word_sha256(entries[one.owner]) for one in words}
        with self._lock, self._lexicon.using(words):
            steps.raise_if_stopped()
            began = time.perf_counter()
            hashes = self._loaded.bring(entries)
            with scheduled(self._switcher, mixes, recipe.steps) as switch:
                entered = time.perf_counter()
                image = self._sample(recipe, steps, switch)
                sampling = time.perf_counter() - entered - steps.switching
            switching = time.perf_counter() - began - sampling
        uses = tuple(
            AdapterUse(
                name, one, entries[name].info.method, hashes[name], word_hashes.get(name, "")
            )
            for name, one in recipe.mix.items()
        )
        record = Record(
            recipe=recipe,
            base=self.base.name,
            fingerprints=dict(self._switcher.fingerprints),
            adapters=uses,
            sampler=recipe.sampler or self.base.samplers[0],
            switch_ms=round(switching * 1000, 3),
            sampling_s=round(sampling, 3),
        )
        return Sample(image, record, self.remarks(recipe))

    def check(self, recipe: Recipe) -> dict[str, Entry]:
        """The adapters of `recipe`; raises the `ShiraError` that `generate` would at its start."""
        self._samplers.make(recipe.sampler)
        if (recipe.width, recipe.height) not in self.base.sizes:
            known = ", ".join(f"{width} x {height}" for width, height in self.base.sizes)
            raise SettingError(
                f"{self.base.name} cannot make {recipe.width} x {recipe.height} px; "
                f"it makes {known}."
            )
        entries = {name: self.library.find(name) for name in recipe.mix}
        self._lexicon.check(words_of(entries, recipe.mix))
        return entries

    def prepare(self, mix: Mapping[str, float], timing: Mapping[str, str]) -> None:
        """Load adapters that will soon be used together, unless the model is at work.

        Those that cannot be used are passed over: `generate` says what is wrong with them.
        """
        usable = {entry.name: entry for entry in self.library.usable}
        entries = {name: usable[name] for name in mix if name in usable}
        known = dict.fromkeys(entries, 1.0)
        if entries and self._lock.acquire(blocking=False):
            try:
                self._loaded.bring(entries)
                # In and out once: what it takes to switch to a set of adapters is kept. Four steps
                # show every set that a timing has, but for those of many that take turns.
                for step in range(4 if timing else 1):
                    with self._switcher.using(schedule(known, timing)(step, 4)):
                        pass
            except ShiraError as error:
                log.info("not prepared: %s", error)
            finally:
                self._lock.release()

    def load_ahead(self) -> None:
        """Load the library's first adapters, so that their first use is no slower than the next."""
        held = 0
        for entry in self.library.usable:
            held += entry.stamp.size
            if held > AHEAD_BYTES:
                return
            self.prepare({entry.name: 1.0}, {})

    def remarks(self, recipe: Recipe) -> tuple[str, ...]:
        """What its author should know of the prompt of `recipe`: cut short, unknown words.

        There are none where a word that it speaks cannot be read.
        """
        room, prompt = int(self._counter.model_max_length), recipe.prompt
        mixed = [entry for entry in self.library.usable if entry.name in recipe.mix]
        try:
            words = words_of({entry.name: entry for entry in mixed}, recipe.mix)
        except ShiraError as error:
            log.info("no remarks: %s", error)
            return ()
        for one in words:  # each of its embeddings is one piece, as "a" is
            prompt = prompt.replace(one.word, " a" * len(one.tokens) + " ")
        with self._counting:
            count = len(self._counter(prompt).input_ids)
        too_long = (
            f"{self.base.name} reads about {room - 2} word pieces; "
            f"the last {count - room} of this prompt were left out."
        )
        remarks = [too_long] if count > room else []
        if self.base.vocabulary:
            known = [one.word for one in words]
            known += [word for entry in mixed for word in entry.info.trigger_words]
            hint = self.base.vocabulary.hint(recipe.prompt, known, self._shelved())
            remarks += [hint] if hint else []
        return tuple(remarks)

    def _sample(self, recipe: Recipe, steps: Steps, switch: StepCallback) -> Image.Image:
        scheduler = self._samplers.make(recipe.sampler)
        after_step = steps.callback(switch, watch_prediction(scheduler))
        self._pipe.scheduler = scheduler
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
                "Choose a smaller size, close other programs that use it, or start the studio "
                "with --enable-vae-tiling or --enable-model-cpu-offload."
            ) from error
        image: Image.Image = output.images[0]
        return image

    def _shelved(self) -> dict[str, tuple[str, ...]]:
        """The trigger words of every SHiRA adapter by its title."""
        usable = self.library.usable
        return {entry.title: entry.info.trigger_words for entry in usable if not entry.is_twin}
