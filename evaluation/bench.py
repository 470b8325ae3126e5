"""What a worker works with: the base and the judges, loaded when first needed and then kept."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers import StableDiffusionXLPipeline
from PIL import Image
from torch import Tensor

from evaluation.drawings import Ask, Drawing
from evaluation.folders import folder_of
from evaluation.judges import Drawn, Judge, load_judge
from evaluation.loading import open_adapter
from evaluation.merging import Part, applied
from evaluation.training_run import Bases, train
from evaluation.trainings import Training
from shira_diffusion import AdapterSwitcher
from shira_diffusion.pipeline import load_base
from training.images import SUFFIXES

T = TypeVar("T")

_SHORT = 0.2
"""The share of a GPU's memory below which what is free counts as short."""


@dataclass
class Bench:
    """Trains, draws and judges on one device, in fp32 throughout."""

    work: Path
    device: str
    pictures: Path | None = None
    _bases: dict[str, tuple[StableDiffusionXLPipeline, AdapterSwitcher]] = field(
        default_factory=dict
    )
    # Not those that are drawn with: a switcher has taken these in.
    _bases_to_train: Bases = field(default_factory=Bases)
    _judges: dict[str, Judge] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.device.startswith("cuda"):
            # Kernels are launched on the current device.
            torch.cuda.set_device(torch.device(self.device).index or 0)
            torch.set_float32_matmul_precision("high")

    def train(self, training: Training) -> dict[str, Any]:
        """Train one adapter and return the line about it."""
        with self._memory_freed():
            return train(training, self.work, self.device, self._bases_to_train)

    def draw(self, drawing: Drawing) -> list[dict[str, Any]]:
        """Draw and judge all pictures of a drawing and return their records.

        Of a drawing's pictures that of the first seed of each prompt is kept for the gallery.
        """
        asked = [(ask, seed) for ask in drawing.asks for seed in drawing.sampling.seeds]
        with self._memory_freed():
            images = self._images(drawing, asked)
        references = {ask: self._references(drawing, ask) for ask in drawing.asks}
        pictures = [
            Drawn(image, ask.prompt, ask.concept, ask.style, references[ask])
            for image, (ask, _) in zip(images, asked, strict=True)
        ]
        scores: list[dict[str, float]] = [{} for _ in pictures]
        for name in drawing.judges:
            for row, found in zip(scores, self._judge(name).look(pictures), strict=True):
                row.update(found)
        records = [
            drawing.record(ask, seed, row) for (ask, seed), row in zip(asked, scores, strict=True)
        ]
        if drawing.training_seed == 0:
            self._keep(records, images, drawing.sampling.seeds[0])
        return records

    def _references(self, drawing: Drawing, ask: Ask) -> tuple[Path, ...]:
        """Real pictures of those active subjects that are asked for."""
        folders = [
            folder_of(one.subject, self.work)
            for one in drawing.trainings
            if one.subject.name in (ask.concept, ask.style)
        ]
        paths = (path for folder in folders for path in sorted(folder.iterdir()))
        return tuple(path for path in paths if path.suffix.lower() in SUFFIXES)

    @contextmanager
    def _memory_freed(self) -> Iterator[None]:
        """Give unused memory of a GPU back after the block where it is short: workers share it.

        To have it again costs each of them a wait for the device.
        """
        try:
            yield
        finally:
            if self.device.startswith("cuda"):
                free, total = torch.cuda.mem_get_info()
                if free < _SHORT * total:
                    torch.cuda.empty_cache()

    def _images(self, drawing: Drawing, asked: Sequence[tuple[Ask, int]]) -> list[Image.Image]:
        """Draw every prompt with its seed; each picture depends on its own seed alone."""
        (pipe, switcher), sampling = self._base(drawing.base), drawing.sampling
        parts = [
            Part(one.subject.name, one.subject.kind, open_adapter(file, pipe.unet), file)
            for one in drawing.trainings
            for file in [one.file(self.work)]
        ]
        merge, strength = drawing.method.merge, drawing.strength
        images: list[Image.Image] = []
        for batch in _in_batches(asked, sampling.batch):
            with (
                torch.no_grad(),
                applied(merge, pipe, switcher, parts, strength, sampling.steps) as after_step,
            ):
                images += pipe(
                    **_encoded(pipe, [ask.prompt for ask, _ in batch], sampling.guidance),
                    generator=[torch.Generator().manual_seed(seed) for _, seed in batch],
                    num_inference_steps=sampling.steps,
                    guidance_scale=sampling.guidance,
                    callback_on_step_end=after_step,
                ).images
        return images

    def _base(self, base: str) -> tuple[StableDiffusionXLPipeline, AdapterSwitcher]:
        if base not in self._bases:
            pipe = load_base(base, device=self.device, dtype=torch.float32)
            pipe.set_progress_bar_config(disable=True)
            self._bases[base] = pipe, AdapterSwitcher(pipe)
        return self._bases[base]

    def _judge(self, name: str) -> Judge:
        if name not in self._judges:
            self._judges[name] = load_judge(name, self.device)
        return self._judges[name]

    def _keep(
        self, records: Sequence[dict[str, Any]], images: Sequence[Image.Image], seed: int
    ) -> None:
        if self.pictures is None:
            return
        self.pictures.mkdir(parents=True, exist_ok=True)
        for record, image in zip(records, images, strict=True):
            if record["seed"] == seed:
                image.save(self.pictures / f"{record['key']}.webp", quality=85)


def _in_batches(asked: Sequence[T], most: int) -> list[Sequence[T]]:
    """Cut into as few parts as hold no more than `most` each, all about as large."""
    count = -(-len(asked) // most)
    bounds = [number * len(asked) // (count or 1) for number in range(count + 1)]
    return [asked[start:stop] for start, stop in pairwise(bounds)]


def _encoded(
    pipe: StableDiffusionXLPipeline, prompts: Sequence[str], guidance: float
) -> dict[str, Tensor | None]:
    """Encode each prompt once and return what the pipeline takes in place of `prompts`."""
    once = list(dict.fromkeys(prompts))
    rows = torch.tensor([once.index(prompt) for prompt in prompts], device=pipe.device)
    names = [
        "prompt_embeds",
        "negative_prompt_embeds",
        "pooled_prompt_embeds",
        "negative_pooled_prompt_embeds",
    ]
    found = pipe.encode_prompt(once, do_classifier_free_guidance=guidance > 1)
    return {
        name: None if part is None else part[rows] for name, part in zip(names, found, strict=True)
    }
