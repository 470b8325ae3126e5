"""How good the base is: the share of its pictures in which the reporting judge sees what was asked.

Three groups of pairs are asked for: trained ones; those of them whose artwork the judge never saw,
so that it cannot know a copy better than anything else; and unseen ones, which neither the base nor
the judge saw. Each share stands beside the judge's own on the real artwork of the same pairs.
"""

import json
import math
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import torch
from diffusers import StableDiffusionXLPipeline
from PIL import Image

from emoji_xl.artwork import Picture
from emoji_xl.captions import plain_caption
from emoji_xl.judge import Judge, as_tensor
from emoji_xl.sheet import GUIDANCE, STEPS, draw_prompts, labelled_sheet, spread
from emoji_xl.train_judge import is_held_out

TIMED_IMAGES = 3


@dataclass(frozen=True)
class Group:
    """Pictures to ask for, and the prefix of their figures in the report."""

    prefix: str
    holds: Callable[[Picture], bool]


GROUPS = (
    Group("", lambda picture: picture.split == "train"),
    Group("fresh_pair_", lambda picture: picture.split == "train" and is_held_out(picture)),
    Group("unseen_pair_", lambda picture: picture.split == "pair"),
)


@dataclass(frozen=True)
class Share:
    """So many `hits` of `total`."""

    hits: int
    total: int

    @property
    def value(self) -> float:
        """The share itself, to four digits."""
        return round(self.hits / self.total, 4)

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval (https://doi.org/10.1080/01621459.1927.10502953)."""
        z, n, p = 1.96, self.total, self.hits / self.total
        middle = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        return round(middle - half, 4), round(middle + half, 4)


def write_report(
    model: Path,
    judge_folder: Path,
    pictures: Sequence[Picture],
    *,
    images: int,
    device: torch.device,
    sheets: Path,
    file: Path,
) -> dict[str, Any]:
    """Draw up to `images` pairs of each group, judge them, write sheets and the JSON `file`."""
    pipe = StableDiffusionXLPipeline.from_pretrained(model, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    judge = Judge.load(judge_folder)
    missed = json.loads((judge_folder / "marks.json").read_text())["missed"]
    seconds = seconds_per_image(pipe, [plain_caption(p.style, p.concept) for p in pictures])
    pipe.to(device)
    shares: dict[str, Share] = {}
    ceiling: dict[str, Share] = {}
    sheets.mkdir(parents=True, exist_ok=True)
    for group in GROUPS:
        chosen = spread([p for p in pictures if group.holds(p)], images, salt="report")
        drawn = draw_prompts(pipe, [plain_caption(p.style, p.concept) for p in chosen])
        seen = judge.look(as_tensor(drawn))
        concepts = seen.concept_is([p.concept for p in chosen]).tolist()
        styles = seen.style_is([p.style for p in chosen]).tolist()
        for name, hits in (("concept", concepts), ("style", styles)):
            key = f"{group.prefix}{name}_top1"
            shares[key] = Share(sum(hits), len(chosen))
            real = [p.file not in missed[name] for p in chosen]
            ceiling[key] = Share(sum(real), len(chosen))
        sheet = verdict_sheet(drawn, chosen, concepts, styles)
        sheet.save(sheets / f"{group.prefix or 'trained_pair_'}report.png")
    found = {
        **{name: share.value for name, share in shares.items()},
        "intervals": {name: share.interval for name, share in shares.items()},
        "ceiling": {name: share.value for name, share in ceiling.items()},
        "images": {name: share.total for name, share in shares.items()},
        "seconds_per_image": round(seconds, 3),
        "steps": STEPS,
        "guidance": GUIDANCE,
        "sampler": type(pipe.scheduler).__name__,
        "model": model.name,
        "judge": judge_folder.name,
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads; pictures on {device}",
        "date": datetime.now(tz=UTC).date().isoformat(),
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(found, indent=2) + "\n")
    return found


def seconds_per_image(pipe: StableDiffusionXLPipeline, prompts: Sequence[str]) -> float:
    """Median seconds that one picture takes on the CPU at default settings, after a warm-up."""
    torch.set_flush_denormal(True)
    times = []
    for prompt in prompts[: TIMED_IMAGES + 1]:
        began = time.perf_counter()
        draw_prompts(pipe, [prompt])
        times.append(time.perf_counter() - began)
    return median(times[1:])


def verdict_sheet(
    images: Sequence[Image.Image],
    pictures: Sequence[Picture],
    concepts: Sequence[bool],
    styles: Sequence[bool],
) -> Image.Image:
    """Sheet with the judge's word in colour: red misses the concept, orange only the style."""
    colours = [
        "red" if not concept else "black" if style else "darkorange"
        for concept, style in zip(concepts, styles, strict=True)
    ]
    labels = [f"{picture.style}: {picture.concept}" for picture in pictures]
    return labelled_sheet(images, labels, columns=10, colours=colours)
