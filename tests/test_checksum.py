"""Two checksums: reading checks the fast one where there is one, `shira verify` both."""

import hashlib
import json
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from shira_diffusion import Adapter, AdapterInfo, SparseDelta, formats
from shira_diffusion.cli import main
from shira_diffusion.cli.command import FOUND_WRONG
from shira_diffusion.errors import FormatError
from shira_diffusion.formats import checksum, container, native
from shira_diffusion.relabel import relabel

SHIPPED = Path(__file__).parents[1] / "adapters" / "robot" / "adapter.safetensors"


def adapter() -> Adapter:
    places = torch.tensor([0, 7, 900], dtype=torch.int32)
    return Adapter({"unet.w": SparseDelta(places, torch.ones(3), (40, 40))}, AdapterInfo("a"))


def parts(path: Path) -> tuple[dict[str, Any], bytes]:
    data = path.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    return json.loads(data[8:end]), data[end:]


def covered(header: dict[str, Any], *without: str) -> bytes:
    stated = {key: one for key, one in header["__metadata__"].items() if key not in without}
    return json.dumps({**header, "__metadata__": stated}, sort_keys=True).encode()


def rewritten(path: Path, header: dict[str, Any], body: bytes) -> None:
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + body)


def with_crc(header: dict[str, Any], body: bytes) -> dict[str, Any]:
    """The header with a right CRC-32, as one who edits a file by hand could make it."""
    value = zlib.crc32(covered(header, checksum.CRC32) + body)
    return {**header, "__metadata__": {**header["__metadata__"], checksum.CRC32: f"{value:08x}"}}


def test_they_are_what_they_are_called(tmp_path: Path) -> None:
    adapter().save(tmp_path / "a.safetensors")
    header, body = parts(tmp_path / "a.safetensors")
    stated = header["__metadata__"]
    sha256 = hashlib.sha256(covered(header, checksum.SHA256, checksum.CRC32) + body)
    assert stated[checksum.SHA256] == sha256.hexdigest()
    assert with_crc(header, body) == header


def test_verify_also_looks_at_the_slow_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.safetensors"
    adapter().save(path)
    formats.require_sha256(path)
    assert main(["verify", str(path)]) == 0
    header, body = parts(path)
    changed = bytes([body[0] ^ 1, *body[1:]])
    rewritten(path, with_crc(header, changed), changed)
    formats.load(path)
    with pytest.raises(FormatError, match=r"a\.safetensors: its checksum is wrong"):
        formats.require_sha256(path)
    assert main(["verify", str(path)]) == FOUND_WRONG
    assert "its checksum is wrong" in capsys.readouterr().out


@pytest.mark.parametrize("kept", [(), (checksum.SHA256,), (checksum.CRC32,)])
def test_one_is_enough_and_none_is_not(tmp_path: Path, kept: tuple[str, ...]) -> None:
    path = tmp_path / "a.safetensors"
    adapter().save(path)
    header, body = parts(path)
    for key in {checksum.SHA256, checksum.CRC32} - set(kept):
        del header["__metadata__"][key]
    if checksum.CRC32 in kept:
        header = with_crc(header, body)
    rewritten(path, header, body)
    if kept:
        assert native.load(path).nnz == 3
    else:
        with pytest.raises(FormatError, match="checksum"):
            native.load(path)


def test_a_relabelled_old_file_is_read_by_old_programs(tmp_path: Path) -> None:
    relabel(SHIPPED, tmp_path / "a.safetensors", {"title": "Another"}, {})
    header, body = parts(tmp_path / "a.safetensors")
    stated = header["__metadata__"]
    assert checksum.CRC32 not in stated
    sha256 = hashlib.sha256(covered(header, checksum.SHA256) + body).hexdigest()
    assert stated[checksum.SHA256] == sha256
    assert native.load(tmp_path / "a.safetensors").info.title == "Another"


def test_a_relabelled_file_keeps_both(tmp_path: Path) -> None:
    adapter().save(tmp_path / "a.safetensors")
    relabel(tmp_path / "a.safetensors", tmp_path / "b.safetensors", {"title": "B"}, {})
    header, body = parts(tmp_path / "b.safetensors")
    assert with_crc(header, body) == header
    formats.require_sha256(tmp_path / "b.safetensors")


def test_files_of_others_are_not_summed(tmp_path: Path) -> None:
    container.write(tmp_path / "ours", {"w": torch.ones(3)}, {})
    with safe_open(tmp_path / "ours", framework="pt") as file:
        assert checksum.CRC32 not in file.metadata()
    container.read(tmp_path / "ours").require_intact()
    header, body = parts(tmp_path / "ours")
    rewritten(tmp_path / "theirs", {**header, "__metadata__": {"format": "pt"}}, body)
    container.read(tmp_path / "theirs").require_sha256()
    with pytest.raises(FormatError, match="checksum"):
        container.read(tmp_path / "theirs").require_intact()
