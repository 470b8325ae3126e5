"""Several concepts in one run: settings, images, triggers, class images, and a whole run."""

import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from PIL import Image

from shira_diffusion import Adapter
from training.__main__ import main
from training.concepts import read_data
from training.config import Concept
from training.errors import ConfigError, DataError
from training.settings import load_config
from training.written import differences, to_json

# The toy's layers are too small to share between cores: on busy ones that costs minutes.
torch.set_num_threads(1)

PRESET = """
name = "pets"
[[concepts]]
data = "{root}/dogs"
instance_prompt = "a photo of sks dog"
trigger = "sks"
repeats = 3
prior_prompts = ["a photo of a dog"]
[[concepts]]
data = "{root}/cats"
prior_prompts = ["a photo of a cat", "a cat in the grass"]
"""


def preset(folder: Path, text: str) -> Path:
    path = folder / "preset.toml"
    path.write_text(text.format(root=folder.as_posix()))
    return path


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """A preset of one dog without a caption and two cats with captions of their own."""
    for name, size in (("dogs/a", (32, 32)), ("cats/a", (32, 32)), ("cats/b", (64, 16))):
        path = tmp_path / f"{name}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", size, (size[0], ord(name[0]), ord(name[-1]))).save(path)
    (tmp_path / "cats" / "a.txt").write_text("tom cat sleeps")
    (tmp_path / "cats" / "b.txt").write_text("tom cat runs")
    (tmp_path / "cats" / "LICENSE.txt").write_text("Cats by Ada, CC0.")
    (tmp_path / "dogs" / "CREDITS.md").write_text("# Credits\n\nDogs by Bob, CC BY.")
    return preset(tmp_path, PRESET)


def test_tables_are_read_and_survive_json(pets: Path, tmp_path: Path) -> None:
    config = load_config(pets)
    assert config.concepts == (
        Concept(
            f"{tmp_path.as_posix()}/dogs",
            "a photo of sks dog",
            "sks",
            3,
            ("a photo of a dog",),
        ),
        Concept(
            f"{tmp_path.as_posix()}/cats",
            prior_prompts=("a photo of a cat", "a cat in the grass"),
        ),
    )
    assert config.classes == (("a photo of a dog",), ("a photo of a cat", "a cat in the grass"))
    stored = json.loads(to_json(config))
    assert differences(stored, config) == []
    del stored["concepts"]
    assert differences(stored, config)[0].startswith("concepts was [], now [{")


def test_concepts_can_be_given_on_the_command_line(tmp_path: Path) -> None:
    concepts = 'concepts=[{data = "a"}, {data = "b", repeats = 2}]'
    config = load_config(preset(tmp_path, 'name = "x"'), [concepts])
    assert config.concepts == (Concept("a"), Concept("b", repeats=2))


def test_all_faults_of_all_concepts_are_reported_together(tmp_path: Path) -> None:
    text = 'stepps = 1\ndata = "x"\n[[concepts]]\nrepeats = 0\ndta = "a"\n'
    text += '[[concepts]]\ndata = "b"\nprior_prompts = "a cat"\n'
    with pytest.raises(ConfigError) as caught:
        load_config(preset(tmp_path, text), ["concepts=7", "steps=0"])
    message = str(caught.value)
    for part in (
        "no setting stepps (did you mean steps?)",
        "[[concepts]] 1: data is missing",
        "[[concepts]] 1: repeats = 0 is not >= 1",
        "[[concepts]] 1: there is no setting dta (did you mean data?)",
        '[[concepts]] 2: prior_prompts = "a cat" is not a list of texts',
        "concepts is not a list of [[concepts]] tables",
        "steps = 0",
        "data and concepts are both set",
        "name is missing",
    ):
        assert part in message
    assert len(message.splitlines()) == 10


def test_images_of_all_concepts_come_as_often_as_they_say(pets: Path) -> None:
    dataset = read_data(load_config(pets))
    assert Counter(image.caption for image in dataset.images) == {
        "a photo of sks dog": 3,
        "tom cat sleeps": 1,
        "tom cat runs": 1,
    }
    assert dataset.files == 3
    assert dataset.words == ("sks", "tom cat")
    assert dataset.prompts == ("a photo of sks dog", "tom cat sleeps")


def test_faults_of_all_folders_are_reported_together(pets: Path, tmp_path: Path) -> None:
    (tmp_path / "cats" / "a.png").write_text("no picture")
    (tmp_path / "dogs" / "a.png").unlink()
    with pytest.raises(DataError) as caught:
        read_data(load_config(pets))
    assert "dogs has no images" in str(caught.value)
    assert "a.png (" in str(caught.value)


def test_run_of_two_concepts_learns_both_and_keeps_both_classes(
    pets: Path, tmp_path: Path, toy_base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"base": toy_base, "run": tmp_path / "run", "cache_dir": tmp_path / "cache"}
    places["adapters_dir"] = tmp_path / "adapters"
    settings = [f"{key}={value}" for key, value in places.items()]
    settings += ["device=cpu", "density=0.2", "steps=3", "batch=2", "sample_steps=2"]
    settings += ["prior_images=2", "prior_steps=2", "prior_batch=1", "buckets=true"]
    assert main([str(pets), "--dry-run", "--set", *settings]) == 0
    out = capsys.readouterr().out
    assert "a.png 32 x 32 x 3: a photo of sks dog" in out
    assert "class images: 2 for 2 classes" in out
    assert "same picture" not in out
    assert main([str(pets), "--set", *settings]) == 0
    folder = tmp_path / "adapters" / "pets"
    info = Adapter.load(folder / "adapter.safetensors").info
    assert info.trigger_words == ("sks", "tom cat")
    assert info.training["data"] == "dogs, cats"
    assert info.training["images"] == "3"
    card = (folder / "card.md").read_text()
    assert "Dogs by Bob" in card
    assert "Cats by Ada" in card
    assert sorted(path.name for path in (tmp_path / "run" / "samples").iterdir()) == [
        "step-000003-1000.png",
        "step-000003-1001.png",
    ]
    made = [json.loads(path.read_text()) for path in tmp_path.glob("cache/prior-*/settings.json")]
    assert Counter((tuple(row["prompts"]), tuple(row["size"])) for row in made) == {
        (prompts, size): 1
        for prompts in (("a photo of a dog",), ("a photo of a cat", "a cat in the grass"))
        for size in ((32, 32), (16, 64))
    }
    (tmp_path / "cats" / "b.txt").write_text("another cat runs")
    assert main([str(pets), "--resume", "--set", *settings, "overwrite=true"]) == 2
    assert "cats) has changed since this run" in capsys.readouterr().err
