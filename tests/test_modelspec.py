"""What other programs read in our files: ModelSpec, kohya's keys, and `shira tag`, which edits."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from shira_diffusion import Adapter, AdapterInfo, modelspec
from shira_diffusion.cli import main
from shira_diffusion.errors import SettingError
from shira_diffusion.formats import checksum, lora
from shira_diffusion.relabel import relabel

ROOT = Path(__file__).parent.parent
ROBOT, LORA = (ROOT / "adapters" / name / "adapter.safetensors" for name in ("robot", "robot-lora"))
INFO = AdapterInfo(
    "robot",
    base_model="stabilityai/stable-diffusion-xl-base-1.0",
    trigger_words=("sks robot", "tin man"),
    training={"steps": "480", "lr": "1e-4", "images": "6", "resolution": "1024"},
)


def stated(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return dict(file.metadata())


def test_modelspec_has_what_it_must_have() -> None:
    spec = modelspec.modelspec(INFO)
    for key in ("sai_model_spec", "architecture", "implementation", "title"):
        assert spec[f"modelspec.{key}"]
    assert spec["modelspec.architecture"] == "stable-diffusion-xl-v1-base/shira"
    assert spec["modelspec.resolution"] == "1024x1024"
    assert spec["modelspec.trigger_phrase"] == "sks robot, tin man"
    assert "modelspec.author" not in spec


@pytest.mark.parametrize(
    ("method", "kind"),
    [("shira", "shira"), ("shira-dora", "shira"), ("lora", "lora"), ("dora", "lora")],
)
def test_the_class_is_that_of_the_file(method: str, kind: str) -> None:
    spec = modelspec.modelspec(AdapterInfo("x", method=method))
    assert spec["modelspec.architecture"].endswith(f"/{kind}")


@given(st.text(max_size=12))
def test_a_resolution_is_two_sides_or_nothing(text: str) -> None:
    spec = modelspec.modelspec(AdapterInfo("x", training={"resolution": text}))
    assert re.fullmatch(r"([1-9]\d*x[1-9]\d*)?", spec.get("modelspec.resolution", ""), re.ASCII)


def test_every_training_text_is_borne() -> None:
    wild = dict.fromkeys(("resolution", "images", "steps"), "9" * 5000)
    assert modelspec.kohya(AdapterInfo("x", training=wild, trigger_words=("a",)), rank=4)
    modelspec.modelspec(AdapterInfo("x", training=wild))


def test_kohyas_keys_are_what_a1111_looks_at() -> None:
    keys = modelspec.kohya(INFO, rank=32)
    assert keys["ss_base_model_version"].startswith("sdxl_")
    assert keys["ss_network_module"] == "networks.lora"
    assert keys["ss_network_dim"] == keys["ss_network_alpha"] == "32"
    assert keys["ss_output_name"] == "robot"
    assert json.loads(keys["ss_tag_frequency"]) == {"robot": {"sks robot": 6, "tin man": 6}}
    assert keys["ss_learning_rate"] == "1e-4"
    assert "ss_network_dim" not in modelspec.kohya(INFO)
    assert "ss_base_model_version" not in modelspec.kohya(AdapterInfo("x", architecture="flux"))


def test_a_written_lora_has_both(tmp_path: Path) -> None:
    lora.save(Adapter.load(LORA), tmp_path / "x.safetensors", 2)
    keys = stated(tmp_path / "x.safetensors")
    assert keys["ss_base_model_version"] == "sdxl_base_v1-0"
    assert keys["modelspec.architecture"].endswith("/lora")
    # The hash is of the tensors' bytes, as the specification has it.
    assert re.fullmatch("0x[0-9a-f]{64}", keys["modelspec.hash_sha256"])


def test_a_lora_made_of_another_says_that_it_is_one(tmp_path: Path) -> None:
    sparse = Adapter.load(ROOT / "adapters" / "robot")
    lora.save(sparse, tmp_path / "x.safetensors", 2)
    info = Adapter.load(tmp_path / "x.safetensors").info
    assert (sparse.info.method, info.method, info.mask) == ("shira", "lora", "")
    assert info.training == {**sparse.info.training, "converted": "rank 2 of shira"}
    assert stated(tmp_path / "x.safetensors")["modelspec.architecture"].endswith("/lora")


def test_kohyas_keys_are_relabelled(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    lora.save(Adapter.load(LORA), file, 2)
    before = stated(file)
    info = relabel(file, file, {"name": "tin", "trigger_words": ("tin man",)}, {})
    after = stated(file)
    assert {key: one for key, one in after.items() if key.startswith("ss_")} == modelspec.kohya(
        info, rank=2
    )
    assert before["ss_tag_frequency"] != after["ss_tag_frequency"]
    relabel(file, file, {"trigger_words": ()}, {})
    assert "ss_tag_frequency" not in stated(file)


def test_kohyas_keys_of_others_stay(tmp_path: Path) -> None:
    """Their trainer counted the tags, and their base has a name of its own."""
    keys = {
        "ss_output_name": "theirs",
        "ss_tag_frequency": '{"3_x": {"robot": 7}}',
        "ss_sd_model_name": "their.safetensors",
    }
    save_file(load_file(LORA), tmp_path / "x.safetensors", metadata=keys)
    changes = {"name": "tin", "trigger_words": ("tin",), "base_model": "mine"}
    relabel(tmp_path / "x.safetensors", tmp_path / "y.safetensors", changes, {})
    after = stated(tmp_path / "y.safetensors")
    assert {key: after[key] for key in keys} == {**keys, "ss_output_name": "tin"}
    save_file(load_file(LORA), tmp_path / "x.safetensors")
    relabel(tmp_path / "x.safetensors", tmp_path / "y.safetensors", changes, {})
    assert not any(key.startswith("ss_") for key in stated(tmp_path / "y.safetensors"))


def test_a_thumbnail_goes_in_and_comes_out(tmp_path: Path) -> None:
    picture = ROOT / "adapters" / "robot" / "thumbnail.png"
    keys = modelspec.thumbnail(picture)
    assert keys["modelspec.thumbnail"].startswith("data:image/png;base64,")
    assert modelspec.picture(keys) == picture.read_bytes()


@pytest.mark.parametrize(
    "text", ["", "x", "data:text/html;base64,QQ==", "data:image/png;base64,?", "data:image/png,QQ"]
)
def test_no_thumbnail_is_none(text: str) -> None:
    assert modelspec.picture({"modelspec.thumbnail": text}) is None


@pytest.mark.parametrize(
    ("data", "words"),
    [(b"GIF89a", "no PNG"), (b"RIFF....AVI ", "no PNG"), (b"\xff\xd8\xff" + b"0" * 2**18, "256")],
)
def test_a_wrong_thumbnail_is_refused(tmp_path: Path, data: bytes, words: str) -> None:
    (tmp_path / "x").write_bytes(data)
    with pytest.raises(SettingError, match=words):
        modelspec.thumbnail(tmp_path / "x")
    with pytest.raises(SettingError, match="cannot be read"):
        modelspec.thumbnail(tmp_path / "nothing")


@pytest.fixture
def tag(tmp_path: Path) -> Callable[..., int]:
    def call(file: Path, *arguments: object) -> int:
        out = tmp_path / "tagged.safetensors"
        return main(["tag", str(file), "-o", str(out), *map(str, arguments)])

    return call


@pytest.mark.parametrize("file", [ROBOT, LORA], ids=["native", "lora"])
def test_tag_changes_words_and_no_tensor(
    file: Path, tag: Callable[..., int], tmp_path: Path
) -> None:
    picture = ROOT / "adapters" / "robot" / "thumbnail.png"
    assert (
        tag(file, "--title", "R2 ☃", "--trigger", "a", "--trigger", "b", "--thumbnail", picture)
        == 0
    )
    out = tmp_path / "tagged.safetensors"
    before, after = Adapter.load(file), Adapter.load(out)
    assert after.info.title == "R2 ☃"
    assert after.info.trigger_words == ("a", "b")
    assert after.info.training == before.info.training
    assert stated(out)["modelspec.usage_hint"] == "Trigger words: a, b"
    assert modelspec.picture(stated(out)) == picture.read_bytes()
    # The same tensors: ModelSpec's hash is over their bytes.
    assert stated(out)["modelspec.hash_sha256"] == stated(file)["modelspec.hash_sha256"]
    # Once more, in place: the picture stays, an emptied title goes.
    assert main(["tag", str(out), "--title", "", "--license", "MIT"]) == 0
    assert modelspec.picture(stated(out)) == picture.read_bytes()
    assert stated(out)["modelspec.title"] == after.info.name
    assert stated(out)["modelspec.license"] == "MIT"


def test_tag_keeps_what_others_wrote(tag: Callable[..., int], tmp_path: Path) -> None:
    foreign = {"ss_output_name": "alien", "modelspec.prediction_type": "v", "modelspec.title": "T"}
    save_file(load_file(LORA), tmp_path / "foreign.safetensors", foreign)
    assert tag(tmp_path / "foreign.safetensors", "--author", "me") == 0
    keys = stated(tmp_path / "tagged.safetensors")
    assert keys.items() >= {**foreign, "modelspec.author": "me"}.items()


def test_tag_declares_a_base(tag: Callable[..., int], tmp_path: Path, capsys: Any) -> None:
    base = ROOT / "models" / "emoji-xl"
    save_file(load_file(LORA), tmp_path / "foreign.safetensors")
    assert tag(tmp_path / "foreign.safetensors", "--base", base) == 0
    info = Adapter.load(tmp_path / "tagged.safetensors").info
    assert info.base_model == "emoji-xl"
    assert info.base_fingerprint == Adapter.load(LORA).info.base_fingerprint


def test_tag_refuses_a_base_that_does_not_fit(
    tag: Callable[..., int], tmp_path: Path, toy_base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tag(ROBOT, "--base", toy_base) == 1
    assert "does not fit" in capsys.readouterr().err
    assert not (tmp_path / "tagged.safetensors").exists()


def test_tag_blesses_no_damaged_file(
    tag: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = bytearray(ROBOT.read_bytes())
    data[-9] ^= 1
    (tmp_path / "broken.safetensors").write_bytes(data)
    assert tag(tmp_path / "broken.safetensors", "--title", "x") == 1
    assert "damaged" in capsys.readouterr().err
    assert checksum.SHA256 in stated(ROBOT)
