"""A finished adapter goes to the hub as one commit; here the hub is a small server of our own."""

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError

from shira_diffusion import AdapterInfo
from training.hub import upload


class Hub(BaseHTTPRequestHandler):
    """Answers what the client asks before and when it commits, and writes down what it is sent."""

    asked: list[tuple[str, Any]]
    refuses = False

    def do_POST(self) -> None:
        here = f"http://{self.headers['Host']}/ada/ink"
        body = self.rfile.read(int(self.headers["Content-Length"]))
        lines = [json.loads(line) for line in body.splitlines()]
        self.asked.append((self.path, lines if "commit" in self.path else lines[0]))
        if self.refuses:
            self._answer(403, {"error": "this token may not write"})
        elif self.path == "/api/repos/create":
            self._answer(200, {"url": here, "name": "ada/ink", "id": "1"})
        elif "preupload" in self.path:
            plain = {"uploadMode": "regular", "shouldIgnore": False}
            files = [{"path": file["path"], **plain} for file in lines[0]["files"]]
            self._answer(200, {"files": files})
        else:
            self._answer(200, {"commitUrl": f"{here}/commit/1", "commitOid": "1"})

    def do_GET(self) -> None:
        self._answer(404, {})

    def _answer(self, status: int, body: Any) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, type[Hub]]]:
    """The server's address, and what it has been asked; nothing else may be reached."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    handler = type("Handler", (Hub,), {"asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", handler
    server.shutdown()
    server.server_close()


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    (tmp_path / "adapter.safetensors").write_bytes(b"\x01\x02")
    (tmp_path / "card.md").write_text("# Ink\n", encoding="utf-8")
    return tmp_path


def info(**changes: Any) -> AdapterInfo:
    return AdapterInfo("ink", title="Ink", method="shira", tags=("ink",), **changes)


def test_all_files_and_a_front_page_go_as_one_commit(
    hub: tuple[str, type[Hub]], adapter: Path
) -> None:
    endpoint, handler = hub
    made = info(base_model="stabilityai/stable-diffusion-xl-base-1.0")
    address = upload(adapter, made, "ada/ink", private=True, endpoint=endpoint)
    assert address == f"{endpoint}/ada/ink"
    paths = [path for path, _ in handler.asked]
    assert paths[0] == "/api/repos/create"
    assert handler.asked[0][1]["visibility"] == "private"
    (commit,) = (lines for path, lines in handler.asked if "/commit/" in path)
    assert commit[0]["value"]["summary"].startswith("Ink")
    sent = {
        line["value"]["path"]: base64.b64decode(line["value"]["content"]) for line in commit[1:]
    }
    assert sent.keys() == {"adapter.safetensors", "card.md", "README.md"}
    assert sent["adapter.safetensors"] == b"\x01\x02"
    page = sent["README.md"].decode()
    assert page.startswith("---\n")
    assert page.endswith("---\n\n# Ink\n")
    assert "base_model: stabilityai/stable-diffusion-xl-base-1.0" in page
    assert "- shira" in page


def test_what_the_hub_refuses_is_raised(hub: tuple[str, type[Hub]], adapter: Path) -> None:
    endpoint, handler = hub
    handler.refuses = True
    with pytest.raises(HfHubHTTPError, match="403"):
        upload(adapter, info(), "ada/ink", private=False, endpoint=endpoint)
