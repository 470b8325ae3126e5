"""What a run trains on: its images, and class images that the base draws, all encoded."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from diffusers import StableDiffusionXLPipeline

from training.batches import Batches
from training.config import Config
from training.data import CaptionedImage
from training.encode import Encoder, Example, TensorCache
from training.images import Size
from training.lodging import lent, text_encoders
from training.machine import Machine
from training.prior import Prior, shared_out
from training.report import Report
from training.sampling import Sampler
from training.views import Gaze, View


@dataclass(frozen=True)
class Preparation:
    """Encodes with the parts of `pipe`, whose UNet has the fingerprint `base`.

    The images' squares have sides of `side` pixels.
    """

    config: Config
    machine: Machine
    pipe: StableDiffusionXLPipeline
    side: int
    base: str
    report: Report

    def batches(self, images: Sequence[CaptionedImage], train_timesteps: int) -> Batches:
        """Return the batches of `images` and their class images."""
        config = self.config
        gaze = Gaze.of(config, self.pipe, self.side)
        with self.machine.main_first():
            priors = []
            if config.keeps_prior:
                priors = self._class_images([gaze.size(image) for image in images])
            views = [(image, gaze.views(image)) for image in images]
            views += [(image, (View(image.size),)) for image in priors]
            examples = self._encoded(views)
        return Batches(
            examples[: len(images)],
            examples[len(images) :],
            batch=config.batch,
            class_batch=config.prior_batch,
            class_weight=config.prior_weight,
            train_timesteps=train_timesteps,
            seed=config.seed,
        )

    def _encoded(self, images: Sequence[tuple[CaptionedImage, tuple[View, ...]]]) -> list[Example]:
        config, pipe = self.config, self.pipe
        with lent(self.machine, pipe.vae, *text_encoders(pipe)):
            encoder = Encoder(
                pipe,
                TensorCache(Path(config.cache_dir) / "tensors"),
                own_sizes=config.size_conditioning == "image",
                texts=not config.texts_train,
                unmasked=config.unmasked_weight,
            )
            with self.report.bar("encoding", len(images)) as advance:
                return encoder.encode(images, lambda done: advance(done, ""))

    def _class_images(self, sizes: Sequence[Size]) -> list[CaptionedImage]:
        """Return class images of the training images' sizes."""
        config = self.config
        return [
            image
            for prompts in config.classes
            for size, count in shared_out(config.prior_images, sizes, prompts).items()
            for image in self._class_images_of(Prior(prompts, count), size)
        ]

    def _class_images_of(self, prior: Prior, size: Size) -> list[CaptionedImage]:
        config, pipe = self.config, self.pipe
        sampler = Sampler(
            pipe,
            self.machine,
            size,
            config.prior_steps,
            config.prior_guidance,
            tiled=config.save_memory,
        )
        folder = prior.folder(Path(config.cache_dir), self.base, sampler)
        # Of several runs that want them one draws, and the others wait.
        with prior.turn(folder):
            missing = prior.missing(folder)
            parts = [pipe.unet, pipe.vae] if missing else []
            if missing and not config.save_memory:
                # Else the sampler fetches them for each picture.
                parts += text_encoders(pipe)
            with (
                lent(self.machine, *parts),
                self.report.bar("class images", len(missing)) as advance,
            ):
                images = prior.images(folder, self.base, sampler, lambda done: advance(done, ""))
        self.report.log.write("prior", folder=str(folder), images=prior.count)
        return images
