"""Judges: the emoji judge on real artwork, the hub's on tiny random checkpoints, clear refusals."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    CLIPTextConfig,
    CLIPVisionConfig,
    Dinov2Config,
    Dinov2Model,
    ViTImageProcessor,
)

from emoji_xl.vocabulary import learn_tokenizer
from evaluation.errors import JudgeError
from evaluation.judges import JUDGES, Drawn, load_judge
from evaluation.judges.base import mean_distance
from evaluation.judges.emoji import EmojiJudge
from evaluation.judges.hub import ClipText, clip_images, dino

CPU = torch.device("cpu")
EXAMPLES = Path("examples")
SIDE = 32


def drawn(colour: str, prompt: str = "a robot", references: tuple[Path, ...] = ()) -> Drawn:
    return Drawn(Image.new("RGB", (40, 40), colour), prompt, "robot", "noto", references)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny random CLIP."""
    folder = tmp_path_factory.mktemp("judges") / "clip"
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "projection_dim": 8}
    text = CLIPTextConfig(**size, **heads, vocab_size=640, max_position_embeddings=16)
    vision = CLIPVisionConfig(**size, **heads, image_size=SIDE, patch_size=16)
    config = CLIPConfig(
        text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=8
    )
    torch.manual_seed(0)
    CLIPModel(config).save_pretrained(folder)
    crop = {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}}
    tokenizer = learn_tokenizer(["a red robot", "a blue castle"], tokens=640, prompt_tokens=16)
    CLIPProcessor(CLIPImageProcessor(**crop), tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny random DINO."""
    folder = tmp_path_factory.mktemp("judges") / "dino"
    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=SIDE, patch_size=16
    )
    Dinov2Model(config).save_pretrained(folder)
    ViTImageProcessor(size={"height": SIDE, "width": SIDE}).save_pretrained(folder)
    return folder


def test_the_emoji_judge_knows_real_artwork() -> None:
    judge = EmojiJudge.load(CPU)
    pictures = [
        Drawn(Image.open(path), path.stem, name, path.stem.removesuffix(f"-{name}"))
        for name in ("robot", "rocket")
        for path in sorted((EXAMPLES / name).glob("*.png"))
    ]
    wrong = [Drawn(one.image, one.prompt, "castle", one.style) for one in pictures]
    seen, missed = judge.look(pictures), judge.look(wrong)
    assert sum(one["concept"] for one in seen) >= len(pictures) - 2
    assert sum(one["style"] for one in seen) >= len(pictures) - 4
    assert all(one["concept"] == 0.0 for one in missed)
    for one in [*seen, *missed]:
        assert 0 <= one["concept_p"] <= 1
        assert "diversity" not in one  # each prompt has one picture


def test_the_emoji_judge_measures_diversity_within_a_prompt() -> None:
    paths = sorted((EXAMPLES / "robot").glob("*.png"))[:2]
    images = [Image.open(path) for path in (paths[0], paths[0], paths[1])]
    same = [Drawn(image, "robot", "robot", "noto") for image in images[:2]]
    other = [Drawn(image, "robot", "robot", "noto") for image in images[1:]]
    judge = EmojiJudge.load(CPU)
    assert [one["diversity"] for one in judge.look(same)] == pytest.approx([0, 0], abs=1e-3)
    assert min(one["diversity"] for one in judge.look(other)) > 0.01


def test_the_emoji_judge_refuses_what_it_was_never_taught() -> None:
    picture = Drawn(Image.new("RGB", (128, 128)), "x", "flux capacitor", "noto")
    with pytest.raises(JudgeError, match="flux capacitor"):
        EmojiJudge.load(CPU).look([picture])


def test_a_judge_that_does_not_ship_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(JudgeError, match="emoji_xl judge --name dev"):
        load_judge("emoji-dev", CPU)


def test_mean_distances_are_to_the_others_of_the_prompt() -> None:
    distances = torch.arange(16.0).reshape(4, 4)
    assert mean_distance(distances, ["a", "b", "a", "a"]) == [2.5, None, 9.5, 13.0]


def test_clip_t_is_the_cosine_of_picture_and_prompt(clip: Path) -> None:
    pictures = [drawn("red", "a red robot"), drawn("blue", "a castle")]
    model, processor = CLIPModel.from_pretrained(clip), CLIPProcessor.from_pretrained(clip)
    for one, scores in zip(pictures, ClipText.load(CPU, str(clip)).look(pictures), strict=True):
        inputs = processor(text=[one.prompt], images=[one.image], return_tensors="pt")
        with torch.no_grad():
            found = model(**inputs)
        expected = F.cosine_similarity(found.image_embeds, found.text_embeds).item()
        assert scores["clip_t"] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("name", ["clip_i", "dino"])
def test_likeness_is_to_real_pictures(
    name: str, clip: Path, features: Path, tmp_path: Path
) -> None:
    judge = clip_images(CPU, str(clip)) if name == "clip_i" else dino(CPU, str(features))
    paths = (tmp_path / "red.png", tmp_path / "blue.png")
    for path in paths:
        Image.new("RGB", (40, 40), path.stem).save(path)
    red, mixed, none = judge.look(
        [drawn("red", references=paths[:1]), drawn("red", references=paths), drawn("red")]
    )
    assert red[name] == pytest.approx(1, abs=1e-4)
    assert mixed[name] < 1
    assert none == {}


def test_weights_that_are_missing_say_how_to_get_them(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip"}))
    with pytest.raises(JudgeError, match="hf download"):
        ClipText.load(CPU, str(tmp_path))


@pytest.mark.parametrize("name", ["hpsv2", "lpips"])
def test_packages_that_are_missing_say_how_to_get_them(name: str) -> None:
    if importlib.util.find_spec(name):
        pytest.skip(f"{name} is here")
    with pytest.raises(JudgeError, match=f"pip install {name}"):
        load_judge(name, CPU)


def test_an_unknown_judge_names_those_there_are() -> None:
    with pytest.raises(JudgeError, match="clip-t"):
        load_judge("clip", CPU)
    assert set(JUDGES) == {"emoji", "emoji-dev", "clip-t", "clip-i", "dino", "hpsv2", "lpips"}
