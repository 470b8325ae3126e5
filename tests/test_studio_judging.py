"""What a judge is asked about a prompt, and what the emoji judge answers."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from emoji_xl.judge import Judge, Labels
from studio.judges.emoji import EmojiJudge, beside
from studio.judges.judging import Member, Subject, subject_of

ROOT = Path(__file__).parent.parent
LABELS = Labels(("fire", "fire truck", "robot", "rocket"), ("noto", "high-contrast"))
ROBOT = Member("my-robot", ("sks robot",), ("my-robot", "robot"))
INK = Member("ink", ("ink style",), ("ink", "high-contrast"))


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> EmojiJudge:
    folder = tmp_path_factory.mktemp("judge")
    Judge.untrained("dev", LABELS, toy=True).save(folder)
    return EmojiJudge(folder)


@pytest.mark.parametrize(
    ("prompt", "members", "subject"),
    [
        ("a castle", (), Subject()),
        ("a Fire Truck, noto style", (), Subject(("fire truck",), ("noto",))),
        ("fireworks, snoto style", (), Subject()),
        ("a rocket, high-contrast", (), Subject(("rocket",))),
        ("sks robot, ink style", (ROBOT, INK), Subject(("robot",), ("high-contrast",))),
        ("robot, ink style", (), Subject(("robot",))),
        ("sks robot, noto style", (ROBOT, INK), Subject(("robot",), ("noto",))),
        ("a rocket, INK style", (ROBOT, INK), Subject(("rocket",), ("high-contrast",))),
        ("sks robot", (Member("x", ("sks robot",), ("x", "")),), Subject(("robot",))),
    ],
)
def test_a_prompt_asks_for_what_its_adapters_bring(
    judge: EmojiJudge, prompt: str, members: tuple[Member, ...], subject: Subject
) -> None:
    assert subject_of(prompt, members, judge) == subject


def test_scores_are_the_judges_probabilities(judge: EmojiJudge) -> None:
    image = Image.effect_noise((32, 32), 80).convert("RGB")
    concept, style = judge.look(image, Subject(("robot",), ("noto",)))
    pixels = torch.from_numpy(np.array(image)).float()
    own = Judge.load(judge._folder)
    verdict = own.look((pixels / 127.5 - 1).permute(2, 0, 1)[None])
    assert concept.value == pytest.approx(float(verdict.concept[0, 2]), abs=1e-4)
    assert style.value == pytest.approx(float(verdict.style[0, 0]), abs=1e-4)
    assert concept.seen == LABELS.concepts[int(verdict.concept[0].argmax())]


def test_only_a_base_with_a_judge_beside_it_has_one(tmp_path: Path) -> None:
    assert beside(tmp_path) is None
    assert beside(Path("someone/on-the-hub")) is None
    found = beside(ROOT / "models" / "emoji-xl")
    assert found is not None
    assert "rocket" in found.concepts
    assert "noto" in found.styles
