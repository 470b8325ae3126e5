"""Judges of any pictures through transformers: CLIP-T, CLIP-I and DINO, by their hub names.

They are DreamBooth's measures (https://arxiv.org/abs/2208.12242): how much a picture is like its
prompt, and how much like the real pictures of what was learned.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoImageProcessor, AutoModel, CLIPModel, CLIPProcessor

from evaluation.errors import JudgeError
from evaluation.judges.base import Drawn, Scores

CLIP = "openai/clip-vit-large-patch14"
DINO = "facebook/dino-vits16"
_AT_ONCE = 32

T = TypeVar("T")


class ClipText:
    """CLIP-T: the cosine of picture and prompt, -1 to 1, as `clip_t`."""

    def __init__(self, model: CLIPModel, processor: CLIPProcessor) -> None:
        self._model, self._processor = model, processor

    @classmethod
    def load(cls, device: torch.device, source: str = CLIP) -> "ClipText":
        """Load the model from the hub, its cache or a folder."""
        model = fetched(source, lambda: CLIPModel.from_pretrained(source))
        processor = fetched(source, lambda: CLIPProcessor.from_pretrained(source))
        return cls(model.to(device).eval(), processor)

    @torch.no_grad()
    def look(self, pictures: Sequence[Drawn]) -> list[Scores]:
        """Return the scores of each picture."""
        found: list[Scores] = []
        for start in range(0, len(pictures), _AT_ONCE):
            part = pictures[start : start + _AT_ONCE]
            inputs = self._processor(
                text=[drawn.prompt for drawn in part],
                images=[drawn.image.convert("RGB") for drawn in part],
                return_tensors="pt",
                padding=True,
                truncation=True,
            ).to(self._model.device)
            seen = self._model(**inputs)
            cosines = F.cosine_similarity(seen.image_embeds, seen.text_embeds)
            found += [{"clip_t": round(cosine, 5)} for cosine in cosines.tolist()]
        return found


class Likeness:
    """The mean cosine of a picture to the real ones of what was learned, -1 to 1.

    A picture without references gets no score.
    """

    def __init__(self, name: str, features: Callable[[Sequence[Image.Image]], Tensor]) -> None:
        self._name, self._features = name, features
        self._known: dict[tuple[Path, ...], Tensor] = {}

    @torch.no_grad()
    def look(self, pictures: Sequence[Drawn]) -> list[Scores]:
        """Return the scores of each picture."""
        seen = self._directions([drawn.image for drawn in pictures])
        return [
            {self._name: round(float((self._references(drawn.references) @ row).mean()), 5)}
            if drawn.references
            else {}
            for drawn, row in zip(pictures, seen, strict=True)
        ]

    def _references(self, paths: tuple[Path, ...]) -> Tensor:
        if paths not in self._known:
            self._known[paths] = self._directions([Image.open(path) for path in paths])
        return self._known[paths]

    def _directions(self, images: Sequence[Image.Image]) -> Tensor:
        parts = [
            self._features([image.convert("RGB") for image in images[start : start + _AT_ONCE]])
            for start in range(0, len(images), _AT_ONCE)
        ]
        return F.normalize(torch.cat(parts).float().cpu(), dim=1)


def clip_images(device: torch.device, source: str = CLIP) -> Likeness:
    """Return CLIP-I, as `clip_i`."""
    model = fetched(source, lambda: CLIPModel.from_pretrained(source)).to(device).eval()
    processor = fetched(source, lambda: CLIPProcessor.from_pretrained(source))

    def features(images: Sequence[Image.Image]) -> Tensor:
        inputs = processor(images=list(images), return_tensors="pt").to(device)
        return model.visual_projection(model.vision_model(**inputs).pooler_output)

    return Likeness("clip_i", features)


def dino(device: torch.device, source: str = DINO) -> Likeness:
    """Return DINO: features of its class token, as `dino`."""
    model: Any = fetched(source, lambda: AutoModel.from_pretrained(source)).to(device).eval()
    processor = fetched(source, lambda: AutoImageProcessor.from_pretrained(source))

    def features(images: Sequence[Image.Image]) -> Tensor:
        inputs = processor(images=list(images), return_tensors="pt").to(device)
        return model(**inputs).last_hidden_state[:, 0]

    return Likeness("dino", features)


def fetched(source: str, load: Callable[[], T]) -> T:
    """Return what `load` does; raises `JudgeError` when the weights are not to be had."""
    try:
        return load()
    except (OSError, ValueError) as error:
        raise JudgeError(
            f"the judge's weights {source} are not here and cannot be fetched "
            f"({str(error).splitlines()[0]}); get them once with: hf download {source}"
        ) from error
