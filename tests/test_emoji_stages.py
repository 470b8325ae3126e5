"""Every stage of the base at toy size, from the command line, on a data set of a few pictures."""

import io
import json
import zipfile
from dataclasses import asdict
from pathlib import Path

import pytest
from diffusers import StableDiffusionXLPipeline
from PIL import Image, ImageDraw

from emoji_xl import __main__ as command_line
from emoji_xl import stages
from emoji_xl.artwork import Picture
from emoji_xl.curve import smoothed

# The hash of its name holds the lime in noto style out of the judges' lessons.
CONCEPTS = {"apple": "red", "pear": "green", "whale": "blue", "lime": "lime", "plum": "purple"}


def picture_of(style: str, concept: str, split: str) -> tuple[Picture, bytes]:
    image = Image.new("RGBA", (32, 32))
    shape = {"noto": "ellipse", "flat": "rectangle"}[style]
    getattr(ImageDraw.Draw(image), shape)((6, 6, 26, 26), fill=CONCEPTS[concept])
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return Picture(style, concept, concept, split), buffer.getvalue()


@pytest.fixture
def pack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A pack of ten pictures, one of them an unseen pair, and the manifest that goes with it."""
    made = [picture_of("noto", concept, "train") for concept in CONCEPTS]
    made += [picture_of("flat", c, "pair" if c == "plum" else "train") for c in CONCEPTS]
    with zipfile.ZipFile(tmp_path / "pack.zip", "w") as archive:
        for picture, data in made:
            archive.writestr(picture.file, data)
    manifest = tmp_path / "manifest.json"
    listed = {
        "styles": {},
        "tags": {concept: [] for concept in CONCEPTS},
        "pictures": [asdict(picture) for picture, _ in made],
    }
    manifest.write_text(json.dumps(listed))
    monkeypatch.setattr(stages, "MANIFEST", manifest)
    monkeypatch.setattr(command_line, "MANIFEST", manifest)
    return tmp_path / "pack.zip"


def toy(*words: str | Path) -> int:
    return command_line.main([*map(str, words), "--device", "cpu"])


def training(pack: Path, minutes: float = 0.02) -> list[str | Path]:
    return ["--size", "toy", "--batch", "4", "--minutes", str(minutes), "--pack", pack]


@pytest.fixture
def run(pack: Path, tmp_path: Path) -> Path:
    """A run folder with both stages done."""
    folder = tmp_path / "run"
    for stage in ("vae", "unet"):
        assert toy("train", "--stage", stage, *training(pack), "--run", folder) == 0
    return folder


def test_both_stages_leave_a_model_its_words_curves_and_sheets(run: Path) -> None:
    pipe = StableDiffusionXLPipeline.from_pretrained(run / "model")
    assert pipe.unet.config.sample_size == 8
    assert json.loads((run / "model" / "words.json").read_text())["concepts"] == sorted(CONCEPTS)
    assert list((run / "sheets").glob("*.png"))
    for stage in ("vae", "unet"):
        assert Image.open(run / f"{stage}-loss.png").width > 100
    rows = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    assert [row["stage"] for row in rows if row.get("finished")] == ["vae", "unet"]


def test_a_run_goes_on_where_it_stopped(
    run: Path, pack: Path, caplog: pytest.LogCaptureFixture
) -> None:
    again = ["train", "--stage", "unet", "--resume", run]
    assert toy(*again, *training(pack)) == 1
    assert "give it more than that" in caplog.text
    rows = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    before = rows[-1]["steps"]
    assert toy(*again, *training(pack, minutes=0.2)) == 0
    rows = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    assert rows[-1]["steps"] > before
    assert rows[-1]["s"] >= 0.2 * 60


def test_resuming_nothing_says_so(
    pack: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    empty = tmp_path / "empty"
    assert toy("train", "--stage", "vae", "--resume", empty, *training(pack)) == 1
    assert "holds no vae.safetensors to resume" in caplog.text


def test_judge_and_report(run: Path, pack: Path, tmp_path: Path) -> None:
    judges = tmp_path / "judges"
    words = ["judge", "--name", "report", "--vae", run / "vae", "--out", judges]
    assert toy(*words, "--run", run, *training(pack)) == 0
    marks = json.loads((judges / "report" / "marks.json").read_text())
    assert set(marks["missed"]) == {"concept", "style"}
    found = tmp_path / "report.json"
    report = ["report", "--model", run / "model", "--judge", judges / "report", "--json", found]
    assert toy(*report, "--images", "2", "--sheets", tmp_path / "sheets") == 0
    read = json.loads(found.read_text())
    prefixes = ("", "fresh_pair_", "unseen_pair_")
    for name in (f"{prefix}{what}_top1" for prefix in prefixes for what in ("concept", "style")):
        low, high = read["intervals"][name]
        assert 0 <= low <= read[name] <= high <= 1
        assert 0 <= read["ceiling"][name] <= 1
    assert read["images"]["unseen_pair_style_top1"] == 1
    assert read["seconds_per_image"] > 0
    assert len(list((tmp_path / "sheets").glob("*.png"))) == 3


def test_the_curve_is_smoothed_from_its_first_value() -> None:
    assert smoothed([2.0]) == [2.0]
    assert smoothed([1.0, 2.0, 2.0]) == pytest.approx([1.0, 1.1, 1.19])
