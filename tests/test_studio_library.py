"""The adapters on disk: what is listed, found, refused and remembered."""

import hashlib
import json
import os
import struct
import sys
from pathlib import Path

import orjson
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from studio_toys import HOSTILE, make_library

from shira_diffusion import Adapter
from shira_diffusion.errors import UnknownAdapterError
from studio.errors import BrokenAdapterError
from studio.library import AdapterLibrary
from studio.thumbnails import thumbnail_uri, write_thumbnail


@pytest.fixture
def folder(toy_base: Path, tmp_path: Path) -> Path:
    return make_library(toy_base, tmp_path / "adapters")


def test_lists_every_folder_and_says_what_is_wrong_with_the_broken_ones(folder: Path) -> None:
    entries = {entry.name: entry for entry in AdapterLibrary(folder).entries}
    assert list(entries) == sorted(
        [HOSTILE, "ink", "ink-lora", "lonely", "pickled", "robot", "robot-lora"]
    )
    assert "no adapter.safetensors" in entries[HOSTILE].problem
    assert "not a whole safetensors file" in entries["pickled"].problem
    good = entries["ink"]
    assert (good.title, good.info.trigger_words, good.problem) == ("Ink", ("ink style",), "")
    assert good.card() == "# ink\n"
    assert good.stamp.size == (folder / "ink" / "adapter.safetensors").stat().st_size
    assert [name for name, entry in entries.items() if entry.is_twin] == ["ink-lora", "robot-lora"]
    assert entries["lonely"].title == "lonely"
    assert entries["lonely"].card() == ""


def test_finds_only_what_it_listed(folder: Path) -> None:
    library = AdapterLibrary(folder)
    for name in ("../adapters/ink", str(folder / "ink"), "", ".", "ink/", "inks"):
        with pytest.raises(UnknownAdapterError, match="ink"):
            library.find(name)
    with pytest.raises(BrokenAdapterError, match="pickled"):
        library.find("pickled")


def test_a_fault_that_only_loading_shows_stays_until_the_file_changes(folder: Path) -> None:
    path = folder / "ink" / "adapter.safetensors"
    whole = path.read_bytes()
    (size,) = struct.unpack("<Q", whole[:8])
    path.write_bytes(whole[: 8 + size] + b"\xff" * (len(whole) - 8 - size))
    library = AdapterLibrary(folder)
    entry = library.find("ink")
    with pytest.raises(BrokenAdapterError, match="ink"):
        library.load(entry)
    library.rescan()
    with pytest.raises(BrokenAdapterError):
        library.find("ink")
    path.write_bytes(whole)
    library.rescan()
    assert library.load(library.find("ink")).nnz == Adapter.load(path).nnz


def test_rescan_sees_new_gone_and_renamed_folders(folder: Path) -> None:
    library = AdapterLibrary(folder)
    (folder / "lonely").rename(folder / "found")
    names = [entry.name for entry in library.rescan()]
    assert "found" in names
    assert "lonely" not in names
    assert AdapterLibrary(folder / "nowhere").entries == ()


def test_a_lora_file_of_others_is_named_after_its_folder(tmp_path: Path) -> None:
    header = json.dumps(
        {"unet.x.lora_A.weight": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}
    ).encode()
    (tmp_path / "sketch").mkdir()
    content = struct.pack("<Q", len(header)) + header + b"\0\0\0\0"
    (tmp_path / "sketch" / "adapter.safetensors").write_bytes(content)
    (entry,) = AdapterLibrary(tmp_path).entries
    assert (entry.name, entry.title, entry.info.method) == ("sketch", "sketch", "lora")
    assert entry.problem == ""


def test_a_file_of_another_kind_is_broken_at_once(tmp_path: Path) -> None:
    (tmp_path / "unet").mkdir()
    weights = {"unet.lora_like.weight": torch.ones(1)}
    save_file(weights, tmp_path / "unet" / "adapter.safetensors")
    (entry,) = AdapterLibrary(tmp_path).entries
    assert entry.problem.startswith("adapter.safetensors: it is neither a SHiRA adapter nor a LoRA")


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_a_folder_whose_name_is_not_utf8_is_listed_and_can_be_sent_to_a_page(
    folder: Path,
) -> None:
    name = os.fsdecode(b"caf\xe9")
    (folder / "ink").rename(folder / name)
    entry = {entry.name: entry for entry in AdapterLibrary(folder).entries}["caf\\udce9"]
    assert "rename the folder" in entry.problem
    orjson.dumps([entry.name, entry.title, entry.problem])


def test_a_header_that_claims_five_gigabytes_is_refused(tmp_path: Path) -> None:
    (tmp_path / "huge").mkdir()
    (tmp_path / "huge" / "adapter.safetensors").write_bytes(struct.pack("<Q", 5 * 2**30) + b"{}")
    (entry,) = AdapterLibrary(tmp_path).entries
    assert "not a whole safetensors file" in entry.problem


def test_sha256_is_that_of_the_file(folder: Path) -> None:
    library = AdapterLibrary(folder)
    expected = hashlib.sha256((folder / "ink" / "adapter.safetensors").read_bytes()).hexdigest()
    assert library.find("ink").sha256() == expected


def test_thumbnails_travel_in_the_page_and_bad_ones_are_left_out(folder: Path) -> None:
    uri = thumbnail_uri(folder / "ink" / "thumbnail.png")
    assert uri.startswith("data:image/webp;base64,")
    assert thumbnail_uri(folder / "lonely" / "thumbnail.png") == ""
    (folder / "lonely" / "thumbnail.png").write_bytes(b"<svg onload=alert(1)>")
    assert thumbnail_uri(folder / "lonely" / "thumbnail.png") == ""


def test_a_small_copy_is_upright_on_white_and_has_pixels_alone(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a secret"  # turned by 90 degrees, described
    wide = Image.new("RGB", (400, 100), "red")
    wide.save(tmp_path / "wide.jpg", exif=exif)
    Image.new("RGBA", (10, 10), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    Image.new("I;16", (10, 10), 1000).save(tmp_path / "deep.png")
    (tmp_path / "no.png").write_bytes(b"no picture")
    small = tmp_path / "small.png"
    assert write_thumbnail(tmp_path / "wide.jpg", small, 200)
    with Image.open(small) as made:
        assert (made.size, made.mode, made.format) == ((50, 200), "RGB", "PNG")
        assert not made.getexif()
    assert write_thumbnail(tmp_path / "clear.png", tmp_path / "small.webp", 200)
    with Image.open(tmp_path / "small.webp") as made:
        assert made.format == "WEBP"
        assert made.getpixel((5, 5)) == (255, 255, 255)
    assert write_thumbnail(tmp_path / "deep.png", small, 200)
    small.unlink()
    assert not write_thumbnail(tmp_path / "no.png", small, 200)
    assert not write_thumbnail(tmp_path / "wide.jpg", small, 200, formats=("PNG",))
    assert not small.exists()
