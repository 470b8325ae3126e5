"""The doctor: what a run would do, what is wrong and how to mend it; trains and writes nothing."""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TypeVar

import torch
from diffusers import StableDiffusionXLPipeline
from rich.console import Console

from shira_diffusion.errors import ShiraError
from shira_diffusion.fingerprint import fingerprint
from shira_diffusion.pipeline import load_base
from training.concepts import read_data
from training.config import Config
from training.data import CaptionedImage, Dataset
from training.images import Size
from training.machine import Machine
from training.memory import Footprint
from training.needs import batch_of, mib, needed, remedies
from training.passes import without_graphs
from training.prepare import check_fit, check_origin, check_texts, origin, side_of, with_words
from training.run_folder import RunFolder
from training.views import Gaze

T = TypeVar("T")


def examine(config: Config, console: Console, *, resume: bool = False) -> list[str]:
    """Print what `run` would do with these settings and return the faults that would refuse it.

    The base is loaded on the CPU: a GPU may be at work.
    """
    return _Examination(config, console, resume).faults()


class _Examination:
    """Asks one question after another; a fault does not keep it from asking the next."""

    def __init__(self, config: Config, console: Console, resume: bool) -> None:
        self._config = config
        self._console = console
        self._resume = resume
        self._faults: list[str] = []

    def faults(self) -> list[str]:
        """Print what is found and return the faults."""
        config = self._config
        machine = self._attempt(lambda: Machine.detect(config.device, config.precision))
        self._attempt(lambda: RunFolder.of(config).check(config, resume=self._resume))
        dataset = self._attempt(lambda: read_data(config))
        pipe = self._attempt(lambda: load_base(config.base, device="cpu", dtype=_dtype(machine)))
        if dataset:
            self._data(dataset)
        if dataset and pipe and self._resume and not self._faults:
            self._attempt(lambda: self._check_stored(dataset, pipe))
        if machine and pipe:
            gaze = Gaze.of(config, pipe, side_of(config, pipe))
            sizes = Counter(gaze.size(image) for image in dataset.images) if dataset else {}
            known = len(self._faults)
            if dataset:
                self._attempt(partial(check_texts, config, pipe, dataset))
                self._buckets(sizes)
                self._quality(dataset, pipe, gaze)
            # A word that cannot be added can neither be counted.
            if len(self._faults) == known:
                self._attempt(lambda: self._training(pipe, machine, [*sizes]))
        return self._faults

    def _attempt(self, question: Callable[[], T]) -> T | None:
        try:
            return question()
        except ShiraError as error:
            self._faults.append(str(error))
            return None

    def _say(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _remark(self, text: str) -> None:
        self._console.print(
            f"remark: {text}", style="yellow", markup=False, highlight=False, soft_wrap=True
        )

    def _data(self, dataset: Dataset) -> None:
        config = self._config
        words = with_words(self._config, dataset).trigger_words
        self._say(f"name: {self._config.name}, method {self._config.method}")
        self._say(f"data: {dataset.files} images with {len(dataset.images)} captions")
        for image, repeats in Counter(dataset.images).items():
            often = f" x {repeats}" if repeats > 1 else ""
            self._say(f"  {image.path.name} {_size(image.size)}{often}: {image.caption}")
        masks = sum(image.mask is not None for image in set(dataset.images))
        if masks:
            self._say(f"loss masks: {masks}, what they leave out counts {config.unmasked_weight:g}")
        self._say(f"trigger words: {', '.join(words) or '(none)'}")
        self._say(_duration(self._config, len(dataset.images)))
        self._say(
            "captions: encoded anew in each step, as the text encoders or a new word train"
            if config.texts_train
            else "captions: encoded once and kept, which spares the memory of the text encoders"
        )
        if self._config.keeps_prior:
            count, classes = self._config.prior_images, len(self._config.classes)
            many = "class" if classes == 1 else "classes"
            self._say(f"class images: {count} for {classes} {many}, drawn by the base if missing")
        for remark in dataset.remarks:
            self._remark(remark)

    def _buckets(self, sizes: Mapping[Size, int]) -> None:
        for size, count in sorted(sizes.items()):
            self._say(f"bucket {_size(size)}: {count} of the captioned images")
            if count < self._config.batch and len(sizes) > 1:
                self._remark(
                    f"bucket {_size(size)} has fewer images than a batch, which repeats them: add "
                    f"images of this shape, or set batch={count} with more accumulation"
                )

    def _quality(self, dataset: Dataset, pipe: StableDiffusionXLPipeline, gaze: Gaze) -> None:
        """Remark on what trains, but badly."""
        for names in _twins(dataset.images):
            self._remark(f"{names} are the same picture: keep one, or it counts double")
        small = sorted({i.path.name for i in dataset.images if _is_small(i.size, gaze.size(i))})
        if small:
            self._remark(
                "smaller than they are trained at and so blurred when scaled up (replace them by "
                f"larger ones, or set a lower resolution=): {', '.join(small)}"
            )
        limit = pipe.tokenizer.model_max_length
        for image in dict.fromkeys(dataset.images):
            tokens = len(pipe.tokenizer(image.caption).input_ids)
            if tokens > limit:
                self._remark(
                    f"the caption of {image.path.name} has {tokens} tokens, the base reads "
                    f"{limit} of them: shorten it"
                )

    def _check_stored(self, dataset: Dataset, pipe: StableDiffusionXLPipeline) -> None:
        stored = RunFolder.of(self._config).checkpoints.load()
        check_origin(stored, origin(fingerprint(pipe.unet), dataset), self._config)

    def _training(
        self, pipe: StableDiffusionXLPipeline, machine: Machine, sizes: Sequence[Size]
    ) -> None:
        config = self._config
        side = side_of(config, pipe)
        check_fit(config, pipe, side, machine)
        found, trained = needed(config, pipe, machine, sizes)
        self._say(f"trained values: {trained:,}")
        if remark := without_graphs(config, machine):
            self._remark(remark)
        self._memory(found, batch_of(config, machine), machine)

    def _memory(self, found: Footprint, count: int, machine: Machine) -> None:
        config = self._config
        texts = f"text encoders {mib(found.texts)} + " if found.texts else ""
        checkpointing = "with" if config.gradient_checkpointing else "without"
        self._say(
            f"memory, {machine.device}: about {mib(max(found.training, found.preparing))}\n"
            f"  a step: {mib(found.training)} = UNet in {_name(machine.dtype)} "
            f"{mib(found.unet)} + {texts}trained values, gradients and {config.optimizer} "
            f"{mib(found.values)} + "
            f"forward and backward of {count} images {checkpointing} checkpointing "
            f"{mib(found.step)}\n"
            f"  encoding: {mib(found.preparing)} = VAE and text encoders "
            f"{mib(found.encoders)} + one image in the VAE {mib(found.encoding)}\n"
            "  (allocations of a step on tensors without storage; kernels' workspaces are extra)"
        )
        free = _free(machine.device)
        if free is not None and free < max(found.training, found.preparing):
            options = [*remedies(config), "a lower resolution"]
            self._remark(f"only {mib(free)} are free on {machine.device}: set {', '.join(options)}")


def _dtype(machine: Machine | None) -> torch.dtype:
    return machine.dtype if machine else torch.float32


def _duration(config: Config, items: int) -> str:
    seen = config.steps * config.accumulation * config.batch
    return (
        f"steps: {config.steps} of {config.batch * config.accumulation} images = "
        f"{seen / items:.1f} epochs of {items}"
    )


def _twins(images: Sequence[CaptionedImage]) -> list[str]:
    """Name the files whose content is the same."""
    names = defaultdict(set)
    for image in images:
        names[image.digest].add(image.path)
    return [
        ", ".join(sorted(path.name for path in same)) for same in names.values() if len(same) > 1
    ]


def _is_small(size: Size, target: Size) -> bool:
    return size[0] < target[0] or size[1] < target[1]


def _size(size: Size) -> str:
    return f"{size[1]} x {size[0]}"


def _free(device: torch.device) -> int | None:
    """Return the free bytes of a GPU; of the machine's own memory nothing portable is known."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
