"""What changes the adapters on disk: import, edit, rename, delete with undo, export."""

import dataclasses
import json
import shutil
import struct
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file
from studio_toys import HOSTILE, load_base, make_adapter, make_library

from shira_diffusion import Adapter, AdapterInfo, formats
from shira_diffusion.cards import EMBEDDINGS
from shira_diffusion.errors import SettingError, UnknownAdapterError
from shira_diffusion.formats import peft
from studio.blends.account import Account
from studio.blends.blend import Blend
from studio.blends.drafts import Drafts
from studio.library import AdapterLibrary
from studio.shelf import archive
from studio.shelf.arrivals import ArrivalError
from studio.shelf.desk import Shelf
from studio.shelf.editing import Edit
from studio.shelf.exports import offered
from studio.shelf.fit import BaseWeights
from studio.shelf.naming import folder_name, free_name, plain, words
from studio.shelf.trash import Trash, TrashError
from studio.tabs.cards import adapter_cards
from studio.tabs.library_view import leaf, shelf_value


@pytest.fixture(scope="module")
def weights(toy_base: Path) -> BaseWeights:
    return BaseWeights.of(load_base(toy_base), "toy-xl")


@pytest.fixture(scope="module")
def made(toy_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library, and an adapter that is not in it."""
    folder = tmp_path_factory.mktemp("made")
    make_library(toy_base, folder / "adapters")
    info = AdapterInfo(name="x", title=HOSTILE, trigger_words=("sks",))
    make_adapter(toy_base, folder / "newcomer", seed=5, info=info)
    return folder


@pytest.fixture
def shelf(made: Path, tmp_path: Path, weights: BaseWeights) -> Shelf:
    folder = shutil.copytree(made / "adapters", tmp_path / "adapters")
    return Shelf.of(AdapterLibrary(folder), weights, tmp_path / "outputs")


@pytest.fixture
def newcomer(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(made / "newcomer" / "adapter.safetensors", tmp_path / "new"))


def files(folder: Path) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def deltas(path: Path) -> dict[str, torch.Tensor]:
    return {name: one.to_dense() for name, one in Adapter.load(path).deltas.items()}


# Names


@given(st.text(max_size=80))
def test_any_title_makes_a_plain_folder_name(title: str) -> None:
    name = folder_name(title)
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
    assert 0 < len(name) <= 48
    assert not name.startswith("-")
    assert name not in {"con", "nul", "com1"}


@pytest.mark.parametrize(
    ("title", "name"),
    [
        ("High contrast", "high-contrast"),
        ("../../etc/passwd", "etc-passwd"),
        ("Café – Crème", "cafe-creme"),
        ("狐", "adapter"),
        ("CON", "adapter"),
        (HOSTILE, "img-src-x-onerror-alert-1"),
    ],
)
def test_folder_names(title: str, name: str) -> None:
    assert folder_name(title) == name


def test_texts_lose_control_characters_and_names_get_numbers() -> None:
    assert plain(" a\0b\x1b[31m\n c\ud800 ") == "ab[31m c"
    assert words("ink style, ,bold\nink style") == ("ink style", "bold")
    assert free_name("ink", {"ink", "ink-2"}) == "ink-3"
    assert free_name("ink", {"ink-lora"}, "-lora") == "ink-2-lora"


# Import


def test_a_native_file_comes_in_byte_for_byte(shelf: Shelf, newcomer: Path) -> None:
    arrival = shelf.take_in(newcomer, "../../evil name.safetensors")
    assert (arrival.name, arrival.title) == ("evil-name", HOSTILE)
    entry = shelf.library.find("evil-name")
    assert (entry.folder / "adapter.safetensors").read_bytes() == newcomer.read_bytes()
    assert sorted(files(entry.folder)) == ["adapter.safetensors", "card.md"]
    with pytest.raises(ArrivalError, match="already, as"):
        shelf.take_in(newcomer, "again.safetensors")


def test_a_taken_name_gets_a_number(shelf: Shelf, newcomer: Path) -> None:
    assert shelf.take_in(newcomer, "ink.safetensors").name == "ink-2"


def test_equal_titles_are_told_and_shown_with_their_folders(shelf: Shelf, newcomer: Path) -> None:
    other = dataclasses.replace(Adapter.load(newcomer).info, title="Ink")
    Adapter(Adapter.load(newcomer).deltas, other).save(newcomer)
    arrival = shelf.take_in(newcomer, "a.safetensors")
    assert any("this one's folder is a." in words for words in arrival.remarks)
    titles = [card["title"] for card in adapter_cards(shelf.library) if not card["problem"]]
    assert titles == ["Ink (LoRA)", "Ink · a", "Ink · ink", "lonely", "Robot", "Robot (LoRA)"]
    assert titles == [
        card["title"] for card in shelf_value(shelf, "")["cards"] if not card["problem"]
    ]
    shelf.delete("a")
    assert shelf.library.find("ink").label == "Ink"


def test_reserved_names_are_taken(shelf: Shelf, newcomer: Path, tmp_path: Path) -> None:
    ticket = shelf.delete("ink").ticket
    shelf.library.reserve(lambda: {"ink", "gift", "robots"})
    assert shelf.take_in(newcomer, "gift.safetensors").name == "gift-2"
    assert shelf.rename("robot", "Robots") == "robots-2"
    assert shelf.undo(ticket) == "ink-2"
    drafts = Drafts(tmp_path / "drafts", shelf.library)
    lonely = shelf.library.load(shelf.library.find("lonely"))
    parts = {"lonely": 1.0, "robot": 1.0}
    draft = drafts.keep(lonely, Account.of(Blend(parts), lonely, {}, ()))
    assert drafts.publish(draft, "Gift", "", None) == "gift-3"


def test_a_lora_keeps_its_ending_and_a_sparse_one_does_not_take_it(
    shelf: Shelf, newcomer: Path, tmp_path: Path
) -> None:
    assert shelf.take_in(newcomer, "sketch-lora.safetensors").name == "sketch"
    shapes = shelf.weights.shapes
    name = next(one for one in shapes if one.endswith("to_q.weight"))
    rows, columns = shapes[name]
    layer = name.removesuffix(".weight")
    tensors = {
        f"{layer}.lora_A.weight": torch.ones(2, columns),
        f"{layer}.lora_B.weight": torch.ones(rows, 2),
    }
    save_file(tensors, tmp_path / "plain.safetensors")
    arrival = shelf.take_in(tmp_path / "plain.safetensors", "sketch-lora.safetensors")
    assert arrival.name == "sketch-lora"
    assert any("trigger" in words for words in arrival.remarks)
    assert not shelf.library.find("sketch-lora").is_twin, "nothing says what it learned"


def test_a_peft_folder_as_zip_becomes_a_native_file(
    shelf: Shelf, newcomer: Path, tmp_path: Path
) -> None:
    peft.save(Adapter.load(newcomer), tmp_path / "peft")
    zipped = tmp_path / "peft.zip"
    with zipfile.ZipFile(zipped, "w") as archive_:
        for path in (tmp_path / "peft").iterdir():
            archive_.write(path, f"some folder/{path.name}")
    arrival = shelf.take_in(zipped, "from peft.zip")
    path = shelf.library.find(arrival.name).folder / "adapter.safetensors"
    assert formats.kind(path) is formats.Kind.NATIVE
    before, after = deltas(newcomer), deltas(path)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name].float(), after[name].float()) for name in before)


def test_a_new_word_travels_with_its_adapter(shelf: Shelf, tmp_path: Path) -> None:
    folder = shelf.library.find("lonely").folder
    info = AdapterInfo(name="lonely", training={"new_token": "<ink>"})
    deltas = Adapter.load(folder / "adapter.safetensors").deltas
    Adapter(deltas, info).save(folder / "adapter.safetensors")
    assert "New word" not in leaf(shelf.library.find("lonely"))
    rows = {"clip_l": torch.ones(2, 8), "clip_g": torch.ones(2, 4)}
    save_file(rows, folder / EMBEDDINGS)
    entry = shelf.library.find("lonely")
    assert "<dt>New word</dt><dd>&lt;ink&gt;</dd>" in leaf(entry)
    bundle = shelf.exports.pack(shelf.library, entry, "zip").path
    shelf.delete("lonely")
    arrival = shelf.take_in(bundle, "lonely.zip")
    assert any("word of its own, <ink>" in words for words in arrival.remarks)
    kept = load_file(shelf.library.find(arrival.name).folder / EMBEDDINGS)
    assert torch.equal(kept["clip_l"], torch.ones(2, 8))
    (folder := tmp_path / "bad").mkdir()
    with zipfile.ZipFile(folder / "bad.zip", "w") as bad, zipfile.ZipFile(bundle) as good:
        for name in good.namelist():
            bad.writestr(name, b"no" if name.endswith(EMBEDDINGS) else good.read(name))
    shelf.delete(arrival.name)
    with pytest.raises(ArrivalError, match=r"bad.zip/embeddings.safetensors: it is not a whole"):
        shelf.take_in(folder / "bad.zip", "bad.zip")


def test_what_was_bundled_comes_back_with_card_and_picture(shelf: Shelf, tmp_path: Path) -> None:
    bundle = shelf.exports.pack(shelf.library, shelf.library.find("ink"), "zip").path
    before = files(shelf.library.find("ink").folder)
    shelf.delete("ink")
    name = shelf.take_in(bundle, "ink.zip").name
    after = files(shelf.library.find(name).folder)
    assert name == "ink"
    assert {key: after[key] for key in ("adapter.safetensors", "card.md")} == {
        key: before[key] for key in ("adapter.safetensors", "card.md")
    }
    with Image.open(shelf.library.find(name).thumbnail) as picture:
        assert picture.size == (128, 128)


def hostile_files(newcomer: Path, folder: Path) -> dict[str, bytes]:
    """Files that must not come in, by what their refusal says."""
    whole = newcomer.read_bytes()
    (size,) = struct.unpack("<Q", whole[:8])
    tensors = load_file(newcomer)
    key = next(name for name in tensors if name.endswith(".values"))
    with_nan = {**tensors, key: torch.full_like(tensors[key], float("nan"))}
    header = json.loads(whole[8 : 8 + size])
    save_file(with_nan, folder / "nan", metadata=header["__metadata__"])
    torch.save({"a": torch.ones(1)}, folder / "pickled")
    save_file({"conv.weight": torch.ones(1)}, folder / "other")
    with zipfile.ZipFile(folder / "two", "w") as archive_:
        archive_.writestr("a.safetensors", whole)
        archive_.writestr("b.safetensors", whole)
    flipped = bytearray(whole)
    flipped[-1] ^= 0xFF
    return {
        "not a whole safetensors file": struct.pack("<Q", 5 * 2**30) + b"{}",
        "finite|checksum": (folder / "nan").read_bytes(),
        "pickle": (folder / "pickled").read_bytes(),
        "neither a SHiRA adapter nor a LoRA": (folder / "other").read_bytes(),
        "2 .safetensors files": (folder / "two").read_bytes(),
        "checksum": bytes(flipped),
    }


def test_hostile_files_are_refused_in_words_and_leave_nothing(
    shelf: Shelf, newcomer: Path, tmp_path: Path
) -> None:
    before = files(shelf.library.folder)
    for words_, content in hostile_files(newcomer, tmp_path).items():
        (tmp_path / "file").write_bytes(content)
        with pytest.raises(ArrivalError, match=words_) as caught:
            shelf.take_in(tmp_path / "file", "gift.safetensors")
        assert str(tmp_path) not in str(caught.value)
        assert str(caught.value).startswith("gift.safetensors was not imported: ")
    assert files(shelf.library.folder) == before


def test_a_zip_writes_no_more_than_it_may_whatever_it_claims(tmp_path: Path) -> None:
    bomb = tmp_path / "bomb.zip"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive_:
        archive_.writestr("/etc/a.safetensors", b"\0" * 4_000_000)
    (tmp_path / "out").mkdir()
    with pytest.raises(formats.FormatError, match="larger than"):
        archive.unpack(bomb, tmp_path / "out", 1_000_000)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["adapter.safetensors"]


def test_an_adapter_of_another_architecture_is_refused(
    shelf: Shelf, newcomer: Path, tmp_path: Path
) -> None:
    small = BaseWeights("tiny", dict.fromkeys(shelf.weights.shapes, (1, 1)))
    other = Shelf(shelf.library, small, shelf.trash, shelf.exports)
    with pytest.raises(ArrivalError, match="for another base"):
        other.take_in(newcomer, "x.safetensors")


# Edit and rename


def test_an_edit_changes_what_the_file_says_and_not_its_tensors(shelf: Shelf) -> None:
    path = shelf.library.find("ink").folder / "adapter.safetensors"
    before = deltas(path)
    change = Edit.read("Ink", "bold ink, thin ink", "style, ink", HOSTILE, 0.8)
    entry = shelf.edit("ink", change)
    assert entry.info.trigger_words == ("bold ink", "thin ink")
    assert (entry.info.tags, entry.info.strength) == (("style", "ink"), "0.8")
    assert entry.info.description == HOSTILE
    after = deltas(path)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_edits_can_empty_fields_again(shelf: Shelf) -> None:
    shelf.edit("ink", Edit.read("Ink", "a", "b", "c", 0.5))
    entry = shelf.edit("ink", Edit.read("Ink", "", "", "", None))
    info = entry.info
    assert (info.trigger_words, info.tags, info.description, info.strength) == ((), (), "", "")
    stated = formats.container.read_header(entry.folder / "adapter.safetensors").metadata
    assert not any(key in stated for key in ("modelspec.tags", "modelspec.usage_hint"))


@pytest.mark.parametrize("strength", [9.0, -3.0, float("nan")])
def test_an_edit_that_cannot_be_is_refused(strength: float) -> None:
    with pytest.raises(SettingError):
        Edit.read("Ink", "", "", "", strength)
    with pytest.raises(SettingError, match="title"):
        Edit.read(" \n", "", "", "", 0)


def test_a_damaged_file_does_not_get_a_fresh_checksum(shelf: Shelf) -> None:
    path = shelf.library.find("ink").folder / "adapter.safetensors"
    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 0xFF
    path.write_bytes(damaged)
    shelf.library.rescan()
    with pytest.raises(formats.FormatError, match="checksum"):
        shelf.edit("ink", Edit.read("Ink", "x", "", "", 0))
    assert path.read_bytes() == damaged


def test_rename_moves_folder_title_card_and_twin_together(shelf: Shelf) -> None:
    ink = shelf.library.find("ink").folder
    card = "# Ink\n\nTrigger words: `ink style`\n\nMine.\n"
    (ink / "card.md").write_text(card)
    assert shelf.rename("ink", "Bold ink!") == "bold-ink"
    assert shelf.rename("bold-ink", "Bold Ink") == "bold-ink"
    names = {entry.name for entry in shelf.library.entries}
    assert {"bold-ink", "bold-ink-lora"} <= names
    assert not {"ink", "ink-lora"} & names
    entry, twin = shelf.library.find("bold-ink"), shelf.library.find("bold-ink-lora")
    assert (entry.info.name, entry.title, twin.info.name) == ("bold-ink", "Bold Ink", twin.name)
    assert twin.is_twin
    assert entry.card() == "# Bold Ink\n\nTrigger words: `ink style`\n\nMine.\n"
    assert shelf.rename("bold-ink", "robot") == "robot-2", "and no adapter is overwritten"


def test_a_rename_leaves_a_stranger_alone_whose_name_looks_like_a_twins(shelf: Shelf) -> None:
    ink = shelf.library.find("ink").folder / "adapter.safetensors"
    blend = dataclasses.replace(Adapter.load(ink).info, name="robot-2", training={"blend": "sum"})
    Adapter(Adapter.load(ink).deltas, blend).save(
        shelf.library.folder / "robot-2" / "adapter.safetensors"
    )
    shelf.library.find("robot-lora").folder.rename(shelf.library.folder / "robot-2-lora")
    shelf.library.rescan()
    stranger = shelf.library.find("robot-2-lora")
    before = files(stranger.folder)
    assert shelf.rename("robot-2", "Robot 2") == "robot-2"
    assert shelf.rename("robot-2", "Triple") == "triple"
    assert files(shelf.library.find("robot-2-lora").folder) == before
    assert not stranger.is_twin


def test_a_rename_that_fails_halfway_changes_nothing(shelf: Shelf) -> None:
    twin = shelf.library.find("ink-lora").folder / "adapter.safetensors"
    damaged = bytearray(twin.read_bytes())
    damaged[-1] ^= 0xFF
    twin.write_bytes(damaged)
    shelf.library.rescan()
    before = {name: Adapter.load(path).info for name, path in sound(shelf).items()}
    with pytest.raises(SettingError, match="cannot be renamed"):
        shelf.rename("ink", "Other")
    shelf.library.rescan()
    assert {name: Adapter.load(path).info for name, path in sound(shelf).items()} == before
    assert twin.read_bytes() == damaged


def sound(shelf: Shelf) -> dict[str, Path]:
    return {
        entry.name: entry.folder / "adapter.safetensors"
        for entry in shelf.library.usable
        if entry.name != "ink-lora"
    }


# Delete


def test_deleted_adapters_come_back_after_a_restart(
    shelf: Shelf, weights: BaseWeights, tmp_path: Path
) -> None:
    before = files(shelf.library.find("ink").folder)
    ticket = shelf.delete("ink").ticket
    with pytest.raises(UnknownAdapterError):
        shelf.library.find("ink")
    again = Shelf.of(AdapterLibrary(shelf.library.folder), weights, tmp_path / "outputs")
    assert [item.title for item in again.trash.items()] == ["Ink"]
    assert again.undo(ticket) == "ink"
    assert files(again.library.find("ink").folder) == before
    with pytest.raises(TrashError):
        again.undo(ticket)


def test_undo_does_not_overwrite_what_has_the_name_now(shelf: Shelf, newcomer: Path) -> None:
    ticket = shelf.delete("ink").ticket
    shelf.take_in(newcomer, "ink.safetensors")
    assert shelf.undo(ticket) == "ink-2"
    assert shelf.library.find("ink").title == HOSTILE


def test_broken_folders_can_be_deleted_and_no_name_is_a_path(shelf: Shelf) -> None:
    assert shelf.delete("pickled").name == "pickled"
    for name in ("../outside", "", ".", ".trash"):
        with pytest.raises(UnknownAdapterError):
            shelf.delete(name)
    for ticket in ("..", "", "../ink", "20260101-000000-abcdefabcdef"):
        with pytest.raises(TrashError):
            shelf.undo(ticket)
    assert shelf.trash.empty() == 1
    assert shelf.trash.items() == ()


def test_a_ticket_without_its_note_is_passed_over(tmp_path: Path) -> None:
    trash = Trash(tmp_path / "trash")
    (tmp_path / "thing").mkdir()
    ticket = trash.discard(tmp_path / "thing", "Thing").ticket
    (tmp_path / "trash" / ticket / "note.json").write_text("{")
    (tmp_path / "trash" / "other").mkdir()
    assert trash.items() == ()


# Export


def test_exports_load_again_and_say_what_they_cost(shelf: Shelf) -> None:
    entry = shelf.library.find("lonely")
    source = entry.folder / "adapter.safetensors"
    packed = {form: shelf.exports.pack(shelf.library, entry, form) for form in offered(entry)}
    assert packed["file"].path.read_bytes() == source.read_bytes()
    assert packed["file"].path.name == "lonely.safetensors"
    lora = Adapter.load(packed["lora-64"].path)
    assert lora.info.name == "lonely"
    dense = deltas(source)
    for name, delta in lora.deltas.items():
        torch.testing.assert_close(delta.to_dense(), dense[name].float(), rtol=0, atol=2e-2)
    assert "keeps" in packed["lora-32"].remark
    assert "zeros" in packed["peft"].remark
    with zipfile.ZipFile(packed["peft"].path) as bundle:
        names = sorted(Path(name).name for name in bundle.namelist())
    assert names == ["adapter_config.json", "adapter_model.safetensors"]
    places = {parcel.path.parent.name for parcel in packed.values()}
    assert len(places) == len(packed)
    assert offered(shelf.library.find("ink-lora")) == ["file", "zip"]
    dora = replace(entry, info=replace(entry.info, method="dora"))
    assert offered(dora) == ["file", "zip"]
