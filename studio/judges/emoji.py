"""The judge of the embedded base, behind the studio's interface: the only file that knows it."""

import json
import threading
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from PIL import Image

from studio.judges.judging import CONCEPT, STYLE, Score, Subject

if TYPE_CHECKING:
    from emoji_xl.judge import Judge

PLACE = Path("emoji-judge") / "report"


def beside(base: Path) -> "EmojiJudge | None":
    """The judge in the folder next to the base's; None for every other base."""
    folder = base.resolve().parent / PLACE
    known = (base / "words.json").is_file() and (folder / "config.json").is_file()
    return EmojiJudge(folder) if known else None


class EmojiJudge:
    """Concept and style of 128 px emoji pictures; its network is read when first needed."""

    def __init__(self, folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        self.concepts: tuple[str, ...] = tuple(config["concepts"])
        self.styles: tuple[str, ...] = tuple(config["styles"])
        self._folder = folder
        self._lock = threading.Lock()

    def look(self, image: Image.Image, subject: Subject) -> tuple[Score, ...]:
        """The probability of each part of `subject`."""
        # The judge's network takes a second to import, which the page's start need not wait for.
        from emoji_xl.judge import as_tensor

        with self._lock, torch.inference_mode():
            verdict = self._judge.look(as_tensor([image]))
        return (
            *_scores(CONCEPT, subject.concepts, self.concepts, verdict.concept[0]),
            *_scores(STYLE, subject.styles, self.styles, verdict.style[0]),
        )

    @cached_property
    def _judge(self) -> "Judge":
        from emoji_xl.judge import Judge

        return Judge.load(self._folder)


def _scores(
    kind: str, wanted: tuple[str, ...], labels: tuple[str, ...], probabilities: torch.Tensor
) -> list[Score]:
    seen = labels[int(probabilities.argmax())]
    return [
        Score(kind, label, round(float(probabilities[labels.index(label)]), 4), seen)
        for label in wanted
    ]
