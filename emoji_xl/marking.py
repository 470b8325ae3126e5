"""What a judge is worth: calibrated and marked on artwork that it never saw."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from emoji_xl.data import Artwork, on_white
from emoji_xl.judge import Judge, Readings
from emoji_xl.train_judge import Lessons


@dataclass(frozen=True)
class Marks:
    """How a judge does on artwork that it never saw; shares between 0 and 1."""

    pictures: int
    concept_top1: float
    style_top1: float
    concept_calibration_error: float
    style_calibration_error: float


def calibrate(judge: Judge, artwork: Artwork) -> Marks:
    """Set the judge's temperatures on one half of unseen `artwork` and mark it on the whole.

    Temperature scaling is https://arxiv.org/abs/1706.04599; those of palette and texture also weigh
    the two against each other. The calibration errors are of the other half.
    """
    lessons = Lessons.of(artwork, judge.labels)
    readings = judge.read(on_white(artwork.rgba))
    truths = (lessons.concepts.cpu(), lessons.styles.cpu())
    fit, check = slice(0, None, 2), slice(1, None, 2)
    judge.log_temperature.copy_(best_log_temperatures(readings, truths, fit))
    top1, errors = [], []
    for logits, truth in zip(readings.calibrated(judge.log_temperature.cpu()), truths, strict=True):
        top1.append(float((logits.argmax(1) == truth).float().mean()))
        errors.append(calibration_error(logits[check].softmax(1), truth[check]))
    return Marks(len(artwork.pictures), *top1, *errors)


def verdicts(judge: Judge, artwork: Artwork) -> dict[str, list[bool]]:
    """Whether the judge names concept and style of each picture, by the picture's file name."""
    seen = judge.look(on_white(artwork.rgba))
    concepts = seen.concept_is([p.concept for p in artwork.pictures])
    styles = seen.style_is([p.style for p in artwork.pictures])
    return {
        p.file: [bool(concept), bool(style)]
        for p, concept, style in zip(artwork.pictures, concepts, styles, strict=True)
    }


def best_log_temperatures(readings: Readings, truths: tuple[Tensor, Tensor], part: slice) -> Tensor:
    """Logarithms (3,) of the temperatures with the smallest cross entropies on `part`."""
    concepts, styles = (truth[part] for truth in truths)
    narrow, wide = torch.linspace(-2, 2, 401), torch.linspace(-2, 3, 51)

    def best(candidates: Iterable[Tensor]) -> Tensor:
        def entropy(logs: Tensor) -> float:
            concept, style = readings.calibrated(logs)
            losses = F.cross_entropy(concept[part], concepts) + F.cross_entropy(style[part], styles)
            return float(losses)

        return min(candidates, key=entropy)

    logs = best(torch.tensor([float(c), 0.0, 0.0]) for c in narrow)
    return best(torch.stack([logs[0], p, t]) for p, t in torch.cartesian_prod(wide, wide))


def calibration_error(probabilities: Tensor, truth: Tensor, *, bins: int = 15) -> float:
    """Expected calibration error: mean gap of confidence and accuracy over equal-width bins."""
    confidence, guess = probabilities.max(dim=1)
    right = (guess == truth).float()
    place = (confidence * bins).long().clamp(max=bins - 1)
    gaps = [
        float((confidence[place == b].mean() - right[place == b].mean()).abs() * (place == b).sum())
        for b in range(bins)
        if (place == b).any()
    ]
    return sum(gaps) / len(truth)
