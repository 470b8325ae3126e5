"""What a judge is worth: calibrated and marked on artwork that it never saw."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from emoji_xl.data import Artwork, on_white
from emoji_xl.judge import Judge
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

    Temperature scaling is https://arxiv.org/abs/1706.04599. The calibration errors are of the other
    half; top-1 does not depend on the temperature.
    """
    lessons = Lessons.of(artwork, judge.labels)
    images = on_white(artwork.rgba)
    judge.log_temperature.zero_()
    seen = judge.look(images)
    logs = tuple(p.clamp(min=1e-12).log() for p in (seen.concept, seen.style))
    truths = (lessons.concepts.cpu(), lessons.styles.cpu())
    fit, check = slice(0, None, 2), slice(1, None, 2)
    errors = []
    for head, (log, truth) in enumerate(zip(logs, truths, strict=True)):
        value = best_log_temperature(log[fit], truth[fit])
        judge.log_temperature[head] = value
        scaled = (log[check] / math.exp(value)).softmax(1)
        errors.append(calibration_error(scaled, truth[check]))
    top1 = [
        float((log.argmax(1) == truth).float().mean())
        for log, truth in zip(logs, truths, strict=True)
    ]
    return Marks(len(images), *top1, *errors)


def missed(judge: Judge, artwork: Artwork) -> dict[str, list[str]]:
    """The files of those pictures whose `concept` the judge does not name, and whose `style`."""
    seen = judge.look(on_white(artwork.rgba))
    hits = {
        "concept": seen.concept_is([p.concept for p in artwork.pictures]),
        "style": seen.style_is([p.style for p in artwork.pictures]),
    }
    return {
        what: [p.file for p, hit in zip(artwork.pictures, right, strict=True) if not hit]
        for what, right in hits.items()
    }


def best_log_temperature(logits: Tensor, truth: Tensor) -> float:
    """Logarithm of the temperature with the smallest cross entropy, to a hundredth."""
    candidates = torch.linspace(-2, 2, 401)
    losses = [float(F.cross_entropy(logits / c.exp(), truth)) for c in candidates]
    return float(candidates[losses.index(min(losses))])


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
