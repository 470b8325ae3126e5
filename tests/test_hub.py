"""Cards and uploads, with the hub's real client against a small hub of our own on this machine."""

import base64
import json
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi, ModelCard

from shira_diffusion import Adapter, AdapterInfo, cards, hub
from shira_diffusion.cli import main
from shira_diffusion.errors import SettingError, ShiraError
from shira_diffusion.relabel import relabel

ROOT = Path(__file__).parent.parent
ROBOT = ROOT / "adapters" / "robot"


@dataclass
class Hub:
    """What the hub's client asks for when a folder is uploaded, answered from memory."""

    url: str
    refuse: bool = False
    created: list[dict[str, Any]] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)

    def answer(self, path: str, body: bytes) -> tuple[int, Any]:
        if self.refuse:
            return 403, {"error": "You are not allowed to write here"}
        if path.endswith("/repos/create"):
            self.created.append(json.loads(body))
            return 200, {"url": f"{self.url}/me/robot", "name": "me/robot"}
        if "/preupload/" in path:
            asked = json.loads(body)["files"]
            modes = [{"path": one["path"], "uploadMode": "regular"} for one in asked]
            return 200, {"files": [{**one, "shouldIgnore": False} for one in modes]}
        if "/commit/" in path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    content = base64.b64decode(line["value"]["content"])
                    self.files[line["value"]["path"]] = content
            commit = f"{self.url}/me/robot/commit/{'a' * 40}"
            return 200, {"commitUrl": commit, "commitOid": "a" * 40, "success": True}
        return 200, {"status": "ok", "errors": [], "warnings": []}


@pytest.fixture
def own_hub() -> Iterator[Hub]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            code, answer = here.answer(self.path.partition("?")[0], body)
            data = json.dumps(answer).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            """Tests are quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    here = Hub(f"http://127.0.0.1:{server.server_port}")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield here
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    """CI is offline; this machine's own hub is not."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)


def test_the_card_has_what_the_hub_reads(tmp_path: Path) -> None:
    package = hub.pack(ROBOT, "me/robot")
    data = ModelCard(package.card).data.to_dict()
    assert data["library_name"] == "shira_diffusion"
    assert data["pipeline_tag"] == "text-to-image"
    assert {"shira", "sparse-adapter", "stable-diffusion-xl"} <= set(data["tags"])
    assert data["instance_prompt"] == "robot"
    assert data["license"] == "cc-by-4.0"
    assert data["widget"] == [{"text": "robot, noto style", "output": {"url": "thumbnail.png"}}]
    # A folder of this project is no base on the hub.
    assert "base_model" not in data
    assert 'load_adapters(pipe, "me/robot", strength=1.0)' in package.card
    assert "In the studio" not in package.card
    assert "## Data" in package.card


def test_a_lone_file_gets_a_card_of_its_own(tmp_path: Path) -> None:
    file = tmp_path / "mine.safetensors"
    changes = {
        "base_model": "stabilityai/stable-diffusion-xl-base-1.0",
        "license": "My Own Terms",
        "tags": ("robot",),
    }
    relabel(ROBOT / "adapter.safetensors", file, changes, {})
    package = hub.pack(file, "me/robot")
    data = ModelCard(package.card).data.to_dict()
    assert package.thumbnail is None
    assert "thumbnail" not in package.card
    assert data["base_model"] == "stabilityai/stable-diffusion-xl-base-1.0"
    assert data["base_model_relation"] == "adapter"
    assert (data["license"], data["license_name"]) == ("other", "My Own Terms")
    assert "robot" in data["tags"]


def test_only_a_words_own_embeddings_go_up(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Beside a file of any other name lies what is somebody else's."""
    trained, other = tmp_path / "adapter.safetensors", tmp_path / "other.safetensors"
    for file in (trained, other):
        shutil.copyfile(ROBOT / "adapter.safetensors", file)
    (tmp_path / "embeddings.safetensors").write_bytes(b"words")
    for path, wanted in ((tmp_path, True), (trained, True), (other, False)):
        target = tmp_path / f"of-{path.name}"
        target.mkdir()
        hub.pack(path, "me/robot").write(target)
        assert (target / "embeddings.safetensors").is_file() == wanted
        assert main(["push", str(path), "me/robot", "--dry-run"]) == 0
        told = capsys.readouterr().out.partition("README.md:")[0]
        assert ("embeddings.safetensors" in told) == wanted


def test_the_thumbnail_inside_a_file_is_used(tmp_path: Path) -> None:
    file, picture = tmp_path / "mine.safetensors", ROBOT / "thumbnail.png"
    assert main(["tag", str(ROBOT), "--thumbnail", str(picture), "-o", str(file)]) == 0
    package = hub.pack(file, "me/robot")
    assert package.thumbnail == picture.read_bytes()
    assert "![a picture drawn with it](thumbnail.png)" in package.card


def test_a_lora_is_one() -> None:
    package = hub.pack(ROOT / "adapters" / "robot-lora", "me/robot-lora")
    data = ModelCard(package.card).data.to_dict()
    assert data["library_name"] == "diffusers"
    assert {"lora", "template:sd-lora"} <= set(data["tags"])
    assert 'load_lora_weights("me/robot-lora", weight_name="adapter.safetensors")' in package.card


def test_a_renewed_card_differs_in_its_use_alone() -> None:
    info = Adapter.load(ROBOT).info
    card = (ROBOT / "card.md").read_text()
    new = cards.renewed(card, info, hub_id="me/robot")
    parts = [text.split("\n## ") for text in (card, new)]
    changed = [a[:4] for a, b in zip(*parts, strict=True) if a.strip() != b.strip()]
    assert changed == ["Use\n"]


def test_a_card_is_renewed_with_what_was_tagged(tmp_path: Path) -> None:
    shutil.copytree(ROBOT, tmp_path / "robot")
    words = {"title": "Tin man", "trigger": "tin", "license": "MIT", "description": "A man."}
    asked = [f"--{key}={text}" for key, text in words.items()]
    assert main(["tag", str(tmp_path / "robot"), *asked]) == 0
    card = hub.pack(tmp_path / "robot", "me/tin").card.partition("\n---\n\n")[2]
    start = "# Tin man\n\nA man.\n\n![a picture drawn with it](thumbnail.png)\n\n"
    assert card.startswith(f"{start}Trigger words: `tin`\n\n## Use\n")
    assert card.endswith("\n\n## Licence\nMIT\n")
    assert card.count("Trigger words:") == card.count("## Licence") == 1


def test_a_renewed_card_keeps_what_a_person_wrote() -> None:
    card = "# Old\n\nMy own words.\n\n## Use\nOld.\n\n## Licence\nMIT, and be kind.\n"
    info = AdapterInfo("x", title="New", description="Other words.", license="MIT")
    new = cards.renewed(card, info, hub_id="me/x")
    assert new.startswith("# New\n\nMy own words.\n\n## Use\nIn Python")
    assert new.endswith("\n\n## Licence\nMIT, and be kind.\n")
    plain = cards.renewed("# Old\n", info, hub_id="")
    assert plain == "# New\n\n## Licence\nMIT\n"


def test_a_card_of_little_is_short() -> None:
    card = cards.write_card(AdapterInfo("x"), thumbnail="")
    assert card.startswith(
        "# x\n\nA sparse high rank (SHiRA) adapter for an unknown base.\n\n## Use"
    )
    assert "None" not in card
    assert card.count("## ") == 1


def test_push_uploads_all_in_one_commit(own_hub: Hub) -> None:
    package = hub.pack(ROBOT, "me/robot")
    api = HfApi(endpoint=own_hub.url, token="hf_toy")
    url = hub.push(package, "me/robot", private=True, api=api)
    assert "me/robot" in url
    assert own_hub.created[0]["name"] == "robot"
    assert own_hub.created[0]["visibility" if "visibility" in own_hub.created[0] else "private"]
    assert set(own_hub.files) == {"README.md", "adapter.safetensors", "thumbnail.png"}
    assert own_hub.files["README.md"].decode() == package.card
    assert own_hub.files["adapter.safetensors"] == (ROBOT / "adapter.safetensors").read_bytes()


def test_a_refusal_is_told_with_its_remedy(own_hub: Hub) -> None:
    own_hub.refuse = True
    api = HfApi(endpoint=own_hub.url, token="hf_toy")
    with pytest.raises(ShiraError, match=r"(?s)refuses.*hf auth login"):
        hub.push(hub.pack(ROBOT, "me/robot"), "me/robot", api=api)


def test_a_hub_that_is_not_there() -> None:
    api = HfApi(endpoint="http://127.0.0.1:9", token="hf_toy")
    with pytest.raises(ShiraError, match="cannot be reached"):
        hub.push(hub.pack(ROBOT, "me/robot"), "me/robot", api=api)


@pytest.mark.parametrize("name", ["robot", "a/b/c", "a b/c", "", "https://x/y"])
def test_an_impossible_repository_is_refused(name: str) -> None:
    with pytest.raises(SettingError, match="user/adapter"):
        hub.pack(ROBOT, name)


def test_a_dry_run_sends_nothing(capsys: pytest.CaptureFixture[str], own_hub: Hub) -> None:
    assert main(["push", str(ROBOT), "me/robot", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "Would upload the adapter, README.md, a thumbnail (440 kB)" in said
    assert "library_name: shira_diffusion" in said
    assert own_hub.created == []
