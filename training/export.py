"""The finished adapter's folder: file, card and thumbnail, there as a whole or not at all."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

from PIL import Image

from shira_diffusion import AdapterInfo
from shira_diffusion.cards import write_card
from training.config import SPARSE, Config
from training.credit import read_credit
from training.data import Dataset
from training.errors import RunError
from training.methods import Together
from training.thumbnail import add_thumbnail

ADAPTER = "adapter.safetensors"

_COMMON = ("targets", "steps", "batch", "accumulation", "optimizer", "lr", "schedule", "seed")
_WHEN_ON = ("blocks", "min_snr_gamma", "noise_offset", "ema", "train_text_encoders", "text_lr")
_WORD = ("new_token", "token_vectors", "token_init", "token_lr")
_LOSS_MASK = ("loss_mask", "unmasked_weight")
_PRIOR = ("prior_images", "prior_batch", "prior_weight")
_MASK = ("mask", "density")


@dataclass(frozen=True)
class Destination:
    """The folder `adapters/<name>` and whether it may replace one that is there."""

    folder: Path
    replace: bool

    def publish(
        self, method: Together, info: AdapterInfo, card: str, thumbnail: Image.Image | None
    ) -> Path:
        """Write everything beside the place, then move it there in one go."""
        if self.folder.exists() and not self.replace:
            raise RunError(
                f"An adapter has come to be in {self.folder} during this run. Move it away, or go "
                "on with --resume --set overwrite=true: the training is not lost."
            )
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        partial = self.folder.parent / f".{self.folder.name}.{uuid4().hex}.partial"
        try:
            partial.mkdir()
            method.save(partial / ADAPTER, info)
            (partial / "card.md").write_text(card, encoding="utf-8")
            if thumbnail is not None:
                add_thumbnail(partial / ADAPTER, thumbnail)
            self._take_place(partial)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        return self.folder

    def _take_place(self, partial: Path) -> None:
        if not self.folder.exists():
            partial.rename(self.folder)
            return
        former = partial.with_suffix(".former")
        self.folder.rename(former)
        try:
            partial.rename(self.folder)
        except BaseException:
            former.rename(self.folder)
            raise
        shutil.rmtree(former)


def describe(
    config: Config, dataset: Dataset, fingerprints: Mapping[str, str], facts: Mapping[str, str]
) -> AdapterInfo:
    """Return what the adapter's file says about itself; no path of this machine is in it.

    `fingerprints` are those of the base's components that were trained.
    """
    sparse = config.method in SPARSE
    keys = _COMMON + (_MASK if sparse else ()) + (_PRIOR if config.keeps_prior else ())
    keys += _LOSS_MASK if config.loss_mask != "off" else ()
    more = _WHEN_ON + (_WORD if config.new_token else ())
    keys += tuple(key for key in more if getattr(config, key))
    training = {key: _text(getattr(config, key)) for key in keys}
    training |= facts
    names = ", ".join(folder.resolve().name for folder in dataset.folders)
    training |= {"data": names, "images": str(dataset.files)}
    return AdapterInfo(
        name=config.name,
        title=config.title,
        base_model=base_name(config.base),
        base_fingerprint=fingerprints,
        method=config.method,
        mask=config.mask if sparse else "",
        trigger_words=config.trigger_words,
        training=training,
        tags=config.tags,
        license=config.license,
        author=config.author,
        description=config.description,
        date=datetime.now(UTC).date().isoformat(),
    )


def card_of(info: AdapterInfo, config: Config, dataset: Dataset, *, pictured: bool) -> str:
    """Return the card of what `config` trained on `dataset`, with a thumbnail or without."""
    texts = dict.fromkeys(read_credit(folder) for folder in dataset.folders)
    credit = "\n\n".join(text for text in texts if text)
    thumbnail = "thumbnail.png" if pictured else ""
    return write_card(info, prompts=config.sample_prompts, credit=credit, thumbnail=thumbnail)


def base_name(base: str) -> str:
    """Return a base's name without the path of this machine; a hub id stays as it is."""
    path = Path(base)
    return path.resolve().name.removesuffix(".safetensors") if path.exists() else base


def _text(value: object) -> str:
    return ", ".join(value) if isinstance(value, tuple) else str(value)
