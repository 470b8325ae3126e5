"""The judges of emoji: which concept and style it sees, and how the pictures differ."""

from collections.abc import Sequence
from pathlib import Path

import torch

from emoji_xl.judge import JUDGES, Judge, as_tensor
from evaluation.errors import JudgeError
from evaluation.judges.base import Drawn, Scores, mean_distance

REPORT, DEV = JUDGES / "report", Path("runs/emoji-xl/judges/dev")
"""The judge that ships and scores, and the one for choosing settings, which is trained here."""


class EmojiJudge:
    """Says of each picture whether it sees what was asked for, and how likely it thinks that.

    `concept` and `style` are 1 where its likeliest one is the one asked for, else 0; `concept_p`
    and `style_p` are calibrated probabilities. `diversity` is the mean distance, 1 - cosine, of its
    concept features to those of the prompt's other pictures.
    """

    def __init__(self, judge: Judge) -> None:
        self._judge = judge

    @classmethod
    def load(cls, device: torch.device, folder: Path = REPORT) -> "EmojiJudge":
        """Read a judge, the one that ships."""
        if not (folder / "model.safetensors").is_file():
            raise JudgeError(
                f"there is no emoji judge in {folder}; run from the repository's root, and train "
                "one that does not ship: python -m emoji_xl judge --name dev"
            )
        return cls(Judge.load(folder).to(device))

    @torch.no_grad()
    def look(self, pictures: Sequence[Drawn]) -> list[Scores]:
        """Return the scores of each picture; raises `JudgeError` for what it was never taught."""
        labels = self._judge.labels
        concepts = self._places(labels.concepts, [drawn.concept for drawn in pictures])
        styles = self._places(labels.styles, [drawn.style for drawn in pictures])
        images = as_tensor([drawn.image for drawn in pictures])
        seen = self._judge.look(images)
        diversity = mean_distance(self._distances(images), [drawn.prompt for drawn in pictures])
        found: list[Scores] = []
        for row, (concept, style) in enumerate(zip(concepts, styles, strict=True)):
            scores = {
                "concept": float(seen.concept[row].argmax() == concept),
                "style": float(seen.style[row].argmax() == style),
                "concept_p": round(float(seen.concept[row, concept]), 4),
                "style_p": round(float(seen.style[row, style]), 4),
            }
            spread = diversity[row]
            if spread is not None:
                scores["diversity"] = round(spread, 4)
            found.append(scores)
        return found

    def _distances(self, images: torch.Tensor) -> torch.Tensor:
        device = self._judge.log_temperature.device
        features = torch.cat(
            [
                self._judge.backbone(part.to(device)).pooler_output.flatten(1)
                for part in images.split(64)
            ]
        )
        directions = torch.nn.functional.normalize(features.float(), dim=1).cpu()
        return 1 - directions @ directions.T

    def _places(self, known: Sequence[str], asked: Sequence[str]) -> list[int]:
        unknown = sorted(set(asked) - set(known))
        if unknown:
            raise JudgeError(
                f"the emoji judge was never taught {', '.join(map(repr, unknown))}; ask for "
                "concepts and styles of emoji_xl/manifest.json"
            )
        return [known.index(word) for word in asked]
