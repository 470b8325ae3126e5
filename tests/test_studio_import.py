"""Files that mean harm sent to a running studio by a program: refused in words, nothing stays."""

import json
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import gradio as gr
import httpx
import pytest
import torch
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image
from safetensors.torch import save_file
from studio_toys import HOSTILE, SIDE, free_port, load_base, make_adapter, make_library, open_toy

from shira_diffusion import Adapter, AdapterInfo, SparseDelta
from shira_diffusion.cards import EMBEDDINGS
from shira_diffusion.formats import container, metadata
from studio.door import Door
from studio.page import serve
from studio.service import Studio

FIVE_GB = 5 * 10**9


@pytest.fixture(scope="module")
def studio(toy_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    folder = tmp_path_factory.mktemp("import")
    studio = open_toy(toy_base, make_library(toy_base, folder / "adapters"), folder / "outputs")
    yield studio
    studio.close()


@pytest.fixture(scope="module")
def page(studio: Studio) -> Iterator[gr.Blocks]:
    page = serve(studio, Door(port=free_port()))
    yield page
    page.close(verbose=False)


@pytest.fixture(scope="module")
def client(page: gr.Blocks, tmp_path_factory: pytest.TempPathFactory) -> Client:
    return Client(
        page.local_url, verbose=False, analytics_enabled=False, httpx_kwargs={"timeout": 60},
        download_files=tmp_path_factory.mktemp("downloads"),
    )  # fmt: skip


@pytest.fixture(scope="module")
def weight(toy_base: Path) -> tuple[str, tuple[int, ...]]:
    """A weight that adapters change, and its shape."""
    named = load_base(toy_base).unet.named_parameters()
    name, weight = next(item for item in named if item[0].endswith("to_v.weight"))
    return f"unet.{name}", tuple(weight.shape)


Forge = Callable[[Path, str, tuple[int, ...]], None]


def first_version(gaps: list[int], values: list[float], claimed: list[int] | None = None) -> Forge:
    """A forger of files in the format's first version, with a checksum that is right."""

    def forge(path: Path, name: str, shape: tuple[int, ...]) -> None:
        tensors = {
            f"{name}.gaps": torch.tensor(gaps, dtype=torch.uint8),
            f"{name}.values": torch.tensor(values, dtype=torch.float16),
        }
        shapes = {name: claimed or list(shape)}
        stated = {"shira.version": "1", "shira.info": '{"name": "forged"}'}
        container.write(path, tensors, {**stated, "shira.shapes": json.dumps(shapes)})

    return forge


def of_bytes(content: bytes) -> Forge:
    return lambda path, name, shape: path.write_bytes(content) and None


def header_of(name: str, length: int) -> bytes:
    header = json.dumps({name: {"dtype": "U8", "shape": [length], "data_offsets": [0, length]}})
    return struct.pack("<Q", len(header)) + header.encode()


def torch_pickle(path: Path, name: str, shape: tuple[int, ...]) -> None:
    torch.save({name: torch.ones(shape)}, path)


def zip_that_climbs(path: Path, name: str, shape: tuple[int, ...]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("../../../../tmp/evil.safetensors", b"no")


def zip_with_bad_word(path: Path, name: str, shape: tuple[int, ...]) -> None:
    inner = path.with_suffix(".inner")
    first_version([0, 3], [1.0, 1.0])(inner, name, shape)
    rows = {"clip_l": torch.full((1, 8), float("nan")), "clip_g": torch.ones(1, 8)}
    stated = metadata.encode(AdapterInfo("x", training={"new_token": "<x>"}))
    container.write(path.with_name("word"), rows, stated)
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(inner, "a/adapter.safetensors")
        archive.write(path.with_name("word"), f"a/{EMBEDDINGS}")


FILES: dict[str, tuple[str, Forge, str]] = {
    "pickle": ("a.safetensors", of_bytes(b"\x80\x04\x95pickle"), "not a whole safetensors file"),
    "torch pickle": ("a.safetensors", torch_pickle, "get the adapter as .safetensors"),
    "checkpoint": ("a.ckpt", of_bytes(b"\x80\x04\x95pickle"), "get the adapter as .safetensors"),
    "empty": ("a.safetensors", of_bytes(b""), "copy or download it again"),
    "header of 5 GB": (
        "a.safetensors", of_bytes(struct.pack("<Q", FIVE_GB) + b"{}"), "copy or download it again",
    ),
    "tensor of 5 GB": (
        "a.safetensors", of_bytes(header_of("w.gaps", FIVE_GB)), "copy or download it again",
    ),
    "NaN": ("a.safetensors", first_version([0, 3], [1.0, float("nan")]), "NaN"),
    "infinity": ("a.safetensors", first_version([0, 3], [1.0, float("inf")]), "infinity"),
    "index out of range": (
        "a.safetensors", first_version([0, 3], [1.0, 1.0], [1, 2]), "of a weight with 2",
    ),
    "shape of another base": (
        "a.safetensors", first_version([0, 3], [1.0, 1.0], [999, 3]), "Start the studio with",
    ),
    "climbing zip": ("a.zip", zip_that_climbs, "put one adapter into it"),
    "zip with a word of NaN": ("a.zip", zip_with_bad_word, "clip_l has values that are NaN"),
}  # fmt: skip


def files(folder: Path) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def assert_alive(client: Client) -> None:
    """It lists its adapters and draws with one."""
    listed = {one["name"]: one["problem"] for one in client.predict(api_name="/adapters")}
    assert listed["ink"] == ""
    picture, _ = client.predict("a castle", {"ink": 1.0}, steps=1, seed=1, api_name="/generate")
    assert Image.open(picture).size == (SIDE, SIDE)


@pytest.mark.parametrize("case", FILES)
def test_hostile_files_are_refused_and_the_studio_goes_on(
    client: Client,
    studio: Studio,
    tmp_path: Path,
    weight: tuple[str, tuple[int, ...]],
    case: str,
) -> None:
    name, forge, words = FILES[case]
    forge(tmp_path / name, *weight)
    before = files(studio.library.folder)
    with pytest.raises(AppError, match="was not imported") as caught:
        client.predict(handle_file(tmp_path / name), api_name="/import")
    told = str(caught.value)
    assert told.startswith(f"{name} was not imported: ")
    assert words in told
    # Neither where things lie on its machine, nor markup.
    assert "/tmp" not in told
    assert str(studio.library.folder) not in told
    assert "<" not in told
    assert files(studio.library.folder) == before
    assert_alive(client)


def test_a_good_file_comes_in_under_a_name_made_here(
    client: Client, studio: Studio, toy_base: Path, tmp_path: Path
) -> None:
    info = AdapterInfo(
        HOSTILE, title=HOSTILE, description=HOSTILE, trigger_words=(HOSTILE,), tags=(HOSTILE,)
    )
    made = make_adapter(toy_base, tmp_path / "made", seed=3, info=info)
    file = (made / "adapter.safetensors").rename(tmp_path / f"{HOSTILE}.safetensors")
    arrival = client.predict(handle_file(file), api_name="/import")
    assert set(arrival["name"]) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
    assert arrival["title"] == HOSTILE
    folder = studio.library.folder / arrival["name"]
    assert folder.parent == studio.library.folder
    assert (folder / "adapter.safetensors").read_bytes() == file.read_bytes()
    listed = {one["name"]: one for one in client.predict(api_name="/adapters")}
    assert listed[arrival["name"]]["trigger_words"] == [HOSTILE]
    client.predict("a castle", {arrival["name"]: 1.0}, steps=1, seed=1, api_name="/generate")
    with pytest.raises(AppError, match="already, as") as caught:
        client.predict(handle_file(file), api_name="/import")
    assert "<" not in str(caught.value)
    assert_alive(client)


def good_bytes(name: str, shape: tuple[int, ...], folder: Path) -> bytes:
    change = torch.zeros(shape)
    change[0, 0] = 1.0
    Adapter({name: SparseDelta.from_dense(change)}, AdapterInfo("x")).save(folder / "x")
    return (folder / "x").read_bytes()


def test_a_name_that_climbs_stays_in_the_library(
    client: Client,
    page: gr.Blocks,
    studio: Studio,
    tmp_path: Path,
    weight: tuple[str, tuple[int, ...]],
) -> None:
    content, climbing = good_bytes(*weight, tmp_path), "../../../../climbed.safetensors"
    (path,) = httpx.post(
        f"{page.local_url}gradio_api/upload", files={"files": (climbing, content)}
    ).json()
    file = {"path": path, "orig_name": climbing, "meta": {"_type": "gradio.FileData"}}
    arrival = client.predict(file, api_name="/import")
    assert arrival["name"] == "climbed"
    assert (studio.library.folder / "climbed" / "adapter.safetensors").read_bytes() == content
    studio.shelf.delete("climbed")


@pytest.mark.parametrize("marked", [True, False])
def test_a_path_of_the_machine_is_not_taken_for_an_upload(
    client: Client,
    studio: Studio,
    tmp_path: Path,
    weight: tuple[str, tuple[int, ...]],
    marked: bool,
) -> None:
    save_file({"a": torch.ones(1)}, tmp_path / "mine.safetensors")
    good = studio.library.folder / "ink" / "adapter.safetensors"
    inside = studio.outputs / "pictures" / "inside.safetensors"
    inside.write_bytes(good_bytes(*weight, tmp_path))
    before = files(studio.library.folder)
    for path in (tmp_path / "mine.safetensors", good, inside, Path("/etc/hostname")):
        file = {"path": str(path), "url": None}
        file |= {"meta": {"_type": "gradio.FileData"}} if marked else {}
        with pytest.raises(AppError) as caught:
            # Submitted as it stands: the client would otherwise upload what lies there.
            call_raw(client, file)
        assert "imported" not in str(caught.value)
    assert files(studio.library.folder) == before
    assert inside.exists()
    assert_alive(client)


def call_raw(client: Client, file: dict[str, object]) -> None:
    """Call `/import` with a value that the client has not touched."""
    address = f"{client.src}gradio_api/call/import"
    event = httpx.post(address, json={"data": [file]}).json()["event_id"]
    answer = httpx.get(f"{address}/{event}", timeout=30).text
    if "event: error" in answer:
        raise AppError(answer)


KINDS = ("application/json", "application/JSON", "APPLICATION/x+Json;charset=UTF-8", "text/x", "")


@pytest.mark.parametrize("path", ["http://example.com/a.safetensors", "HTTPS://example.com/a"])
def test_a_file_of_another_machine_is_not_fetched(client: Client, path: str) -> None:
    for value in ({"path": path, "meta": {"_type": "gradio.FileData"}}, [[{"path": path}]]):
        body = json.dumps({"data": [value], "fn_index": 0, "session_hash": "x"}).encode()
        for place in ("call/import", "queue/join", "run/predict", "api/import"):
            for kind in KINDS:
                headers = {"content-type": kind} if kind else {}
                address = f"{client.src}gradio_api/{place}"
                response = httpx.post(address, content=body, headers=headers)
                assert response.status_code == 403
                assert "upload the file itself" in response.text
    assert_alive(client)


def test_uploads_do_not_stay(
    studio: Studio,
    tmp_path: Path,
    weight: tuple[str, tuple[int, ...]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sent = tmp_path / "sent"
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(sent))
    (tmp_path / "bad.safetensors").write_bytes(b"no adapter")
    (tmp_path / "fine.safetensors").write_bytes(good_bytes(*weight, tmp_path))
    page = serve(studio, Door(port=free_port()))
    try:
        client = Client(page.local_url, verbose=False, analytics_enabled=False)
        with pytest.raises(AppError, match="was not imported"):
            client.predict(handle_file(tmp_path / "bad.safetensors"), api_name="/import")
        client.predict(handle_file(tmp_path / "fine.safetensors"), api_name="/import")
        assert not any(files(sent).values())
        # What nobody takes in goes with time, and when the studio ends.
        httpx.post(f"{page.local_url}gradio_api/upload", files={"files": ("left", b"alone")})
        assert any(files(sent).values())
    finally:
        page.close(verbose=False)
    assert not any(files(sent).values())
    studio.shelf.delete("fine")


def test_no_file_at_all_is_told(client: Client) -> None:
    with pytest.raises(AppError, match="No file came"):
        client.predict(None, api_name="/import")
