"""The studio as programs and the command line meet it: endpoints, files, errors."""

import asyncio
import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import gradio as gr
import httpx
import pytest
import torch
from gradio_client import Client
from gradio_client.exceptions import AppError
from mcp import ClientSession
from mcp.client.streamable_http import streamablehttp_client
from PIL import Image
from studio_toys import HOSTILE, SIDE, free_port, make_studio, recipe

import app
from shira_diffusion import Adapter, AdapterInfo
from shira_diffusion.errors import SettingError
from studio.door import Door
from studio.infotext import RECORD_KEY, Record, from_json
from studio.jobs import Job, State
from studio.library import ADAPTER_FILE, AdapterLibrary
from studio.machine import Machine
from studio.page import serve
from studio.pictures import write_png
from studio.service import Studio
from studio.tabs import fragments, stage
from studio.tabs.controls import with_word
from studio.tabs.generating import GenerateHandlers
from studio.tabs.pairs import adapter_choices, proposed_pair

ROOT = Path(__file__).parent.parent
JOB = Job(1, "a", "generate", "", {}, State.QUEUED, 0.0)


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
    return open_client(page, tmp_path)


def open_client(page: gr.Blocks, folder: Path, **options: object) -> Client:
    return Client(
        page.local_url, verbose=False, download_files=folder, analytics_enabled=False,
        httpx_kwargs={"timeout": 60}, **options,
    )  # fmt: skip


def generate(client: Client, **arguments: object) -> tuple[bytes, dict]:
    settings = {"prompt": "a castle", "steps": 2, "guidance": 3.0, "seed": 7}
    picture, record = client.predict(**{**settings, **arguments}, api_name="/generate")
    with Image.open(picture) as image:
        assert from_json(image.info[RECORD_KEY]).recipe.prompt == "a castle"
        return image.tobytes(), record


def test_only_these_endpoints_are_public(client: Client) -> None:
    endpoints = client.view_api(return_format="dict", print_info=False)["named_endpoints"]
    names = {"/generate", "/compare", "/adapters", "/import", "/jobs", "/cancel"}
    assert set(endpoints) == names
    told = (ROOT / "docs" / "studio-api.md").read_text(encoding="utf-8")
    assert all(f"| `{name}(" in told for name in names)


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


def test_tags_samplers_and_timings_count(client: Client, studio: Studio) -> None:
    pixels, record = generate(
        client, prompt="a castle <lora:ink:0.5>", adapters={"robot": 1.0}, sampler="UniPC",
        timing={"robot": "late"},
    )  # fmt: skip
    given = recipe(mix={"robot": 1.0, "ink": 0.5}, sampler="UniPC", timing={"robot": "late"})
    assert pixels == studio.engine.generate(given).image.tobytes()
    assert (record["sampler"], record["recipe"]["timing"]) == ("UniPC", {"robot": "late"})


def test_two_users_at_once_get_what_each_gets_alone(
    page: gr.Blocks, studio: Studio, tmp_path: Path
) -> None:
    mixes = [{"ink": 1.0}, {"robot": 1.0, "ink": -0.5}] * 3
    alone = [studio.engine.generate(recipe(mix=mix, steps=6)).image.tobytes() for mix in mixes]
    users = [open_client(page, tmp_path / name) for name in ("one", "two")]

    def use(turn: int) -> bytes:
        return generate(users[turn % 2], adapters=mixes[turn], steps=6)[0]

    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(use, range(6))) == alone


def test_fifty_jobs_wait_in_line_and_each_is_made(
    page: gr.Blocks, client: Client, studio: Studio, tmp_path: Path
) -> None:
    before = len(studio.jobs.recent(1000))
    crowd = open_client(page, tmp_path / "crowd", max_workers=50)
    with studio.engine._lock:  # nothing is made until all are in line
        waiting = [
            crowd.submit("a castle", {"ink": seed / 50}, steps=1, seed=seed, api_name="/generate")
            for seed in range(50)
        ]
        while len(studio.jobs.recent(1000)) < before + 50:
            time.sleep(0.1)
        listed = client.predict(50, api_name="/jobs")
    assert [job["ahead"] for job in listed] == list(range(49, -1, -1))
    assert [job["state"] for job in listed] == ["queued"] * 49 + ["running"]
    for seed, job in enumerate(waiting):
        _, record = job.result(60)
        assert (record["recipe"]["seed"], record["recipe"]["mix"]) == (seed, {"ink": seed / 50})
    made = client.predict(50, api_name="/jobs")
    assert {job["state"] for job in made} == {"done"}
    assert len({job["pictures"][0] for job in made}) == 50


def test_a_job_can_be_cancelled_and_listed(client: Client, studio: Studio) -> None:
    long = client.submit("a castle", steps=100, api_name="/generate")
    while not (running := studio.jobs.recent(1, states=[State.RUNNING])):
        time.sleep(0.05)
    client.predict(running[0].id, api_name="/cancel")
    with pytest.raises(AppError, match="Stopped"):
        long.result(60)
    (job,) = client.predict(1, api_name="/jobs")
    assert (job["kind"], job["state"], job["pictures"]) == ("generate", "cancelled", [])
    for hostile in ("../jobs", HOSTILE):
        with pytest.raises(AppError, match="no job") as caught:
            client.predict(hostile, api_name="/cancel")
        assert "<" not in str(caught.value)


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
        ({"sampler": HOSTILE}, "no sampler"),
        ({"timing": {"ink": "late"}}, "not among"),
        ({"adapters": {"ink": 1.0}, "timing": {"ink": HOSTILE}}, "can work always"),
        ({"prompt": "a castle <lora:>"}, "&lt;lora:&gt;"),
        ({"prompt": "a castle <lora:../../etc:1>"}, "no adapter"),
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
        studio.state / "jobs.sqlite",
        studio.outputs / "pictures" / ".." / ".studio" / "jobs.sqlite",
    ]
    assert (studio.state / "jobs.sqlite").is_file()
    for path in outside:
        response = httpx.get(page.local_url + fragments.file_url(path))
        assert response.status_code == 403, path
    for elsewhere in ("http://example.com/x", "https://127.0.0.1:1/x", "https%3A%2F%2Fa.example"):
        response = httpx.get(f"{page.local_url}gradio_api/file={elsewhere}")
        assert (response.status_code, response.text[:5]) == (403, "Files"), elsewhere


def test_a_path_in_place_of_an_upload_is_not_read(
    page: gr.Blocks, studio: Studio, tmp_path: Path
) -> None:
    inside = studio.pictures.save(Image.new("RGB", (8, 8)), Record(recipe(), base="toy"))
    write_png(Image.new("RGB", (8, 8)), tmp_path / "a.png", Record(recipe(), base="toy"))
    (take,) = (number for number, block in page.fns.items() if block.name == "take")

    def told(path: Path) -> str:
        session = {"session_hash": path.stem[-10:]}
        file = {"path": str(path), "meta": {"_type": "gradio.FileData"}}
        call = {"data": [file], "fn_index": take, **session}
        assert httpx.post(f"{page.local_url}gradio_api/queue/join", json=call).is_success
        return httpx.get(f"{page.local_url}gradio_api/queue/data", params=session, timeout=20).text

    assert "a castle" not in told(tmp_path / "a.png")
    assert "a castle" not in told(Path("/etc/hostname"))
    assert '"success":false' in told(studio.pictures.path(inside)).replace(" ", "")


def test_a_picture_can_be_taken_up_again_without_adapters_that_are_gone(studio: Studio) -> None:
    made = recipe(mix={"ink": 0.5, "gone": 1.0}, negative_prompt="fog")
    name = studio.pictures.save(Image.new("RGB", (8, 8)), Record(made, base="toy"))
    form = GenerateHandlers(studio).reuse(name)
    rack = {"ink": {"strength": 0.5, "on": True, "timing": "always"}}
    assert (form.prompt, form.negative_prompt, form.rack) == ("a castle", "fog", rack)
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
        info = AdapterInfo(name, trigger_words=(word,), training={"data": name})
        Adapter({}, info).save(tmp_path / name / "adapter.safetensors")
        if name == "blob":
            library.rescan()
            assert proposed_pair(library) == ("blob", None)
        if name != "lone":
            twin = replace(info, name=f"{name}-lora", method="lora")
            Adapter({}, twin).save(tmp_path / twin.name / "adapter.safetensors")
    for method in ("dora", "symlora", "shira-dora"):
        Adapter({}, AdapterInfo(method, method=method)).save(tmp_path / method / ADAPTER_FILE)
    library.rescan()
    assert proposed_pair(library) == ("blob", "robot")
    names = [name for _, name in adapter_choices(library)]
    assert names == ["blob", "flat", "robot", "lone", "shira-dora"]


def test_trigger_words_are_added_once() -> None:
    assert with_word("", "sks robot") == "sks robot"
    assert with_word("a castle, ", "sks robot") == "a castle, sks robot"
    assert with_word("A SKS Robot", "sks robot") == "A SKS Robot"


def test_texts_from_files_are_never_markup(studio: Studio) -> None:
    record = Record(recipe(prompt=HOSTILE, negative_prompt=HOSTILE), base=HOSTILE)
    path = studio.pictures.folder / '"><b>.png'
    for piece in (
        stage.done(path, record, [path, path], crisp=True),
        stage.ended(replace(JOB, state=State.FAILED, error=HOSTILE)),
        fragments.settings(record),
    ):
        assert "<img src=x" not in piece
        assert "<b>" not in piece


@pytest.mark.parametrize("listen", ["0.0.0.0", "192.168.0.7", "::", "studio.example"])
def test_others_come_in_only_with_a_login_or_by_a_clear_word(listen: str) -> None:
    with pytest.raises(SettingError, match="--auth USER:PASSWORD, or --no-auth"):
        Door(listen=listen)
    assert Door(listen=listen, no_auth=True).host == listen
    assert Door(listen=listen, auth="ann:se:cret").login == ("ann", "se:cret")
    assert "cret" not in repr(Door(listen=listen, auth="ann:se:cret"))


def test_the_door_is_this_machine_alone_by_default() -> None:
    assert (Door().host, Door().login) == ("127.0.0.1", None)
    assert Door(listen="127.0.0.2").host == "127.0.0.2"
    assert Door(listen="localhost").host == "localhost"
    for auth in ("ann", ":secret", "ann:", ""):
        with pytest.raises(SettingError, match="USER:PASSWORD"):
            Door(auth=auth)
    with pytest.raises(SettingError, match="opposites"):
        Door(auth="ann:secret", no_auth=True)
    with pytest.raises(SettingError, match="--mcp and --auth"):
        Door(auth="ann:secret", mcp=True)
    assert Door(mcp=True, listen="0.0.0.0", no_auth=True).mcp


def test_a_login_is_asked_for_everywhere(studio: Studio) -> None:
    page = serve(studio, Door(port=free_port(), auth="ann:secret"))
    try:
        name = studio.pictures.save(Image.new("RGB", (8, 8)), Record(recipe(), base="toy"))
        for path in ("config", fragments.file_url(studio.pictures.path(name))):
            assert httpx.get(page.local_url + path).status_code == 401
        wrong = {"username": "ann", "password": "guess"}
        assert httpx.post(page.local_url + "login", data=wrong).status_code == 400
    finally:
        page.close(verbose=False)


def test_an_mcp_client_finds_and_calls_the_endpoints(studio: Studio) -> None:
    page = serve(studio, Door(port=free_port(), mcp=True))

    async def use() -> tuple[set[str], str]:
        address = f"{page.local_url}gradio_api/mcp/"
        async with (
            streamablehttp_client(address) as (read, write, _),
            ClientSession(read, write) as session,
        ):
            await session.initialize()
            tools = {tool.name for tool in (await session.list_tools()).tools}
            listed = await session.call_tool("adapters", {})
            return tools, listed.content[0].text

    try:
        tools, listed = asyncio.run(use())
    finally:
        page.close(verbose=False)
    assert tools == {"generate", "compare", "adapters", "jobs", "cancel"}
    assert "ink style" in listed


def test_options_for_a_gpu_are_refused_on_the_cpu() -> None:
    for option in ("compile", "enable_model_cpu_offload"):
        with pytest.raises(SettingError, match=option.replace("_", "-")):
            Machine(device="cpu", **{option: True})
    with pytest.raises(SettingError, match="bfloat16"):
        Machine(dtype="bf16")


def test_memory_options_reach_the_pipeline(toy_base: Path) -> None:
    machine = Machine("cpu", "bfloat16", enable_vae_tiling=True, enable_vae_slicing=True)
    pipe = machine.load(str(toy_base))
    assert pipe.unet.dtype == torch.bfloat16
    assert (pipe.vae.use_tiling, pipe.vae.use_slicing) == (True, True)


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
