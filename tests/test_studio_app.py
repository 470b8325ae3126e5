"""The studio as programs and the command line meet it: endpoints, files, errors."""

import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gradio as gr
import httpx
import pytest
import torch
from gradio_client import Client
from gradio_client.exceptions import AppError
from PIL import Image
from studio_toys import HOSTILE, SIDE, free_port, make_studio, recipe

import app
from shira_diffusion import Adapter, AdapterInfo
from studio.infotext import RECORD_KEY, Record, from_json
from studio.library import AdapterLibrary
from studio.door import Door
from studio.page import serve
from studio.service import Studio
from studio.tabs import fragments
from studio.tabs.compare import adapter_choices, proposed_pair
from studio.tabs.controls import with_word
from studio.tabs.generate import GenerateHandlers

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def studio(toy_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Studio:
    return make_studio(toy_base, tmp_path_factory.mktemp("app"))


@pytest.fixture(scope="module")
def page(studio: Studio) -> Iterator[gr.Blocks]:
    page = serve(studio, Door(port=free_port()))
    yield page
    page.close(verbose=False)


@pytest.fixture
def client(page: gr.Blocks, tmp_path: Path) -> Client:
    return Client(page.local_url, verbose=False, download_files=tmp_path, analytics_enabled=False)


def generate(client: Client, **arguments: object) -> tuple[bytes, dict]:
    settings = {"prompt": "a castle", "steps": 2, "guidance": 3.0, "seed": 7}
    picture, record = client.predict(**{**settings, **arguments}, api_name="/generate")
    with Image.open(picture) as image:
        assert from_json(image.info[RECORD_KEY]).recipe.prompt == "a castle"
        return image.tobytes(), record


def test_only_the_three_endpoints_are_public(client: Client) -> None:
    endpoints = client.view_api(return_format="dict", print_info=False)["named_endpoints"]
    assert set(endpoints) == {"/generate", "/compare", "/adapters"}


def test_adapters_are_listed_with_what_is_wrong(client: Client) -> None:
    listed = {entry["name"]: entry for entry in client.predict(api_name="/adapters")}
    assert listed["ink"]["trigger_words"] == ["ink style"]
    assert listed["ink"]["card"] == "# ink\n"
    assert listed["ink"]["problem"] == ""
    assert "safetensors" in listed["pickled"]["problem"]
    assert HOSTILE in listed


def test_generate_gives_the_file_and_its_settings(client: Client, studio: Studio) -> None:
    pixels, record = generate(client, adapters={"ink": 0.5}, negative_prompt="fog")
    given = recipe(mix={"ink": 0.5}, negative_prompt="fog")
    assert pixels == studio.engine.generate(given).image.tobytes()
    assert record["recipe"]["mix"] == {"ink": 0.5}
    assert record["adapters"][0]["name"] == "ink"


def test_clients_at_once_get_their_own_mixes(client: Client, studio: Studio) -> None:
    mixes = [{"ink": 1.0}, {"robot": 1.0}, {}, {"ink": -1.0, "robot-lora": 0.5}]
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda mix: generate(client, adapters=mix)[0], mixes))
    assert made == [studio.engine.generate(recipe(mix=mix)).image.tobytes() for mix in mixes]


def test_compare_gives_a_sheet_and_its_cells(client: Client) -> None:
    sheet, cells = client.predict("a castle", "ink", "lonely", steps=1, seed=3, api_name="/compare")
    assert Image.open(sheet).width > 4 * SIDE
    assert [bool(cell["picture"]) for cell in cells] == [True] * 6 + [False, False]
    assert Image.open(cells[1]["picture"]).size == (SIDE, SIDE)
    assert "lonely-lora" in cells[6]["problem"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"prompt": ""}, "prompt is empty"),
        ({"adapters": {"inc": 1.0}}, "nearest"),
        ({"adapters": {"../../etc/passwd": 1.0}}, "no adapter"),
        ({"adapters": {"pickled": 1.0}}, "not a whole safetensors file"),
        ({"adapters": {"ink": 1e9}}, "from -1 to 2"),
        ({"adapters": {"ink": "1"}}, "from -1 to 2"),
        ({"adapters": ["ink"]}, "name: strength"),
        ({"adapters": {HOSTILE: 1.0}}, "&lt;img"),
        ({"steps": 10**6}, "whole number"),
        ({"width": 4096}, "cannot make"),
    ],
)
def test_errors_say_what_to_do_and_carry_no_markup(
    client: Client, arguments: dict[str, object], words: str
) -> None:
    with pytest.raises(AppError) as caught:
        generate(client, **arguments)
    assert words in str(caught.value)
    assert "<" not in str(caught.value)


def test_only_the_outputs_are_served(page: gr.Blocks, studio: Studio, toy_base: Path) -> None:
    name = studio.pictures.save(Image.new("RGB", (8, 8)), Record(recipe(), base="toy"))
    url = page.local_url + fragments.file_url(studio.pictures.path(name))
    assert httpx.get(url).headers["content-type"] == "image/png"
    outside = [
        studio.library.folder / "ink" / "adapter.safetensors",
        toy_base / "model_index.json",
        ROOT / "pyproject.toml",
        Path("/etc/hostname"),
        studio.outputs / ".." / "adapters" / "ink" / "card.md",
    ]
    for path in outside:
        response = httpx.get(page.local_url + fragments.file_url(path))
        assert response.status_code == 403, path


def test_a_picture_can_be_taken_up_again_without_adapters_that_are_gone(studio: Studio) -> None:
    made = recipe(mix={"ink": 0.5, "gone": 1.0}, negative_prompt="fog")
    name = studio.pictures.save(Image.new("RGB", (8, 8)), Record(made, base="toy"))
    form = GenerateHandlers(studio).reuse(name)
    assert (form.prompt, form.negative_prompt, form.mix) == ("a castle", "fog", {"ink": 0.5})
    assert (form.seed, form.fresh_seed) == (7, False)
    large = studio.pictures.save(Image.new("RGB", (8, 8)), Record(recipe(width=64), base="toy"))
    assert GenerateHandlers(studio).reuse(large).size == f"{SIDE} × {SIDE}"
    with pytest.raises(gr.Error, match="no picture"):
        GenerateHandlers(studio).reuse("../ink")


def test_twins_are_not_offered_on_their_own(studio: Studio) -> None:
    assert adapter_choices(studio.library) == [
        ("Ink", "ink"),
        ("Robot", "robot"),
        ("lonely", "lonely"),
    ]


def test_a_style_and_a_concept_are_proposed(toy_base: Path, tmp_path: Path) -> None:
    library = AdapterLibrary(tmp_path)
    assert proposed_pair(library) == (None, None)
    kinds = {"blob": "blob style", "flat": "flat style, ink", "lone": "dog", "robot": "sks robot"}
    for name, word in kinds.items():
        info = AdapterInfo(name, trigger_words=(word,))
        Adapter({}, info).save(tmp_path / name / "adapter.safetensors")
        if name == "blob":
            library.rescan()
            assert proposed_pair(library) == ("blob", None)
        if name != "lone":
            twin = AdapterInfo(f"{name}-lora", method="lora")
            Adapter({}, twin).save(tmp_path / twin.name / "adapter.safetensors")
    library.rescan()
    assert proposed_pair(library) == ("blob", "robot")


def test_trigger_words_are_added_once() -> None:
    assert with_word("", "sks robot") == "sks robot"
    assert with_word("a castle, ", "sks robot") == "a castle, sks robot"
    assert with_word("A SKS Robot", "sks robot") == "A SKS Robot"


def test_texts_from_files_are_never_markup(studio: Studio) -> None:
    record = Record(recipe(prompt=HOSTILE, negative_prompt=HOSTILE), base=HOSTILE)
    path = studio.pictures.folder / '"><b>.png'
    for piece in (
        fragments.stage_done(path, record, crisp=True),
        fragments.settings(record),
    ):
        assert "<img src=x" not in piece
        assert "<b>" not in piece


def run_app(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> str:
    """What `python app.py` leaves behind when it cannot start."""
    monkeypatch.setattr(sys, "argv", ["app.py", *arguments])
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
    try:
        with pytest.raises(SystemExit) as ended:
            app.main()
    finally:
        torch.set_flush_denormal(False)
    return str(ended.value.code)


def test_a_missing_base_is_one_clear_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = str(tmp_path / "nowhere")
    message = run_app(monkeypatch, "--base", base, "--outputs", str(tmp_path))
    assert message.startswith("The studio cannot start")
    assert base in message


def test_outputs_that_cannot_be_written_are_said_before_the_base_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    message = run_app(monkeypatch, "--base", "nowhere", "--outputs", str(tmp_path / "file"))
    assert "nothing can be written" in message
    assert "--outputs" in message


@pytest.mark.parametrize(("base", "offline"), [("", "1"), ("model.safetensors", "0")])
def test_only_a_folder_keeps_the_hub_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, base: str, offline: str
) -> None:
    (tmp_path / "model.safetensors").write_text("")
    (tmp_path / "file").write_text("")
    run_app(monkeypatch, "--base", str(tmp_path / base), "--outputs", str(tmp_path / "file"))
    assert os.environ["HF_HUB_OFFLINE"] == offline


def test_a_port_in_use_is_one_clear_sentence(
    page: gr.Blocks, toy_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = page.local_url.rsplit(":", 1)[1].strip("/")
    message = run_app(
        monkeypatch, "--base", str(toy_base), "--outputs", str(tmp_path), "--port", port
    )
    assert f"127.0.0.1:{port}" in message
    assert f"--port {int(port) + 1}" in message
