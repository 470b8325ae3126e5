"""Judges: what pictures are worth, behind one small interface.

Each is loaded when a plan names it, through its usual library and with its usual weights.
"""

from collections.abc import Callable, Mapping
from functools import partial

import torch

from evaluation.errors import JudgeError
from evaluation.judges.base import Drawn, Judge, Scores
from evaluation.judges.emoji import DEV, EmojiJudge
from evaluation.judges.hub import ClipText, clip_images, dino
from evaluation.judges.packages import HumanPreference, PerceptualDiversity
from shira_diffusion.errors import nearest

__all__ = ["JUDGES", "Drawn", "Judge", "Scores", "load_judge"]

JUDGES: Mapping[str, Callable[[torch.device], Judge]] = {
    "emoji": EmojiJudge.load,
    "emoji-dev": partial(EmojiJudge.load, folder=DEV),
    "clip-t": ClipText.load,
    "clip-i": clip_images,
    "dino": dino,
    "hpsv2": HumanPreference.load,
    "lpips": PerceptualDiversity.load,
}
"""Every judge by the name that plans call it."""


def load_judge(name: str, device: torch.device | str) -> Judge:
    """Load a judge; raises `JudgeError` that says what is missing and how to get it."""
    if name not in JUDGES:
        raise JudgeError(f"there is no judge {name!r}; {nearest(name, JUDGES, most=len(JUDGES))}")
    return JUDGES[name](torch.device(device))
