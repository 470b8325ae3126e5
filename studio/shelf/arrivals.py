"""Import: a file from outside is checked whole before it becomes an adapter of the library."""

import dataclasses
import hashlib
import secrets
import shutil
import zipfile
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from shira_diffusion import Adapter, formats, modelspec
from shira_diffusion.cards import EMBEDDINGS, write_card
from shira_diffusion.errors import FormatError, ShiraError
from shira_diffusion.formats import container, lora
from shira_diffusion.formats.embeddings import read_word
from shira_diffusion.lowrank import LowRankDelta
from studio.library import (
    ADAPTER_FILE,
    CARD_FILE,
    THUMBNAIL_FILE,
    AdapterLibrary,
)
from studio.newwords import told as word_told
from studio.shelf.archive import unpack
from studio.shelf.fit import BaseWeights
from studio.shelf.naming import folder_name, free_name, plain
from studio.thumbnails import CARD_SIDE, write_thumbnail
from studio.twins import LORA, TWIN_ENDING

MAX_BYTES = 8 * 2**30


class ArrivalError(ShiraError):
    """A file from outside is not taken into the library."""


@dataclass(frozen=True)
class Arrival:
    """What came in: the new adapter's name, and what is worth knowing about it."""

    name: str
    title: str
    remarks: tuple[str, ...] = ()


def take_in(file: Path, told: str, library: AdapterLibrary, weights: BaseWeights) -> Arrival:
    """Check `file`, which its owner calls `told`, and copy it in under a name made here.

    Native files and LoRAs are kept byte for byte, PEFT folders (as a zip) are written anew in the
    native format. Raises `ArrivalError`; the library is as before then.
    """
    told = plain(told, 80)
    with TemporaryDirectory(prefix="shira-import-") as scratch:
        try:
            if file.stat().st_size > MAX_BYTES:
                raise FormatError(f"it is larger than {MAX_BYTES // 2**30} GiB")
            source = file
            if zipfile.is_zipfile(file):
                source = unpack(file, Path(scratch), MAX_BYTES)
            adapter = _checked(source, library, weights)
            return _keep(source, Path(scratch), adapter, Path(told).stem, library)
        except (ShiraError, OSError) as error:
            words = str(error)
            for path in (f"{scratch}/{ADAPTER_FILE}", str(file), scratch):
                words = words.replace(f"{path}: ", "").replace(path, told)
            raise ArrivalError(f"{told} was not imported: {words}") from error


def _checked(source: Path, library: AdapterLibrary, weights: BaseWeights) -> Adapter:
    adapter = formats.load(source, shapes=weights.shapes or None)
    objection = weights.objection(adapter)
    if objection:
        raise FormatError(
            f"it is for another base than {weights.base}, which this studio runs. Start it with "
            f"the file's own, python app.py --base ..., to use it ({objection})"
        )
    _refuse_known(source, library)
    return adapter


def _keep(
    source: Path, extras: Path, adapter: Adapter, stem: str, library: AdapterLibrary
) -> Arrival:
    """Choose a name and a title, and copy the adapter in."""
    info = adapter.info
    is_lora = info.method == LORA
    title = plain(info.title, 80) or plain(stem, 80) or "Adapter"
    ending = TWIN_ENDING if is_lora and stem.endswith(TWIN_ENDING) else ""
    wanted = folder_name(stem.removesuffix(ending))
    wanted = wanted if is_lora else wanted.removesuffix(TWIN_ENDING)
    name = free_name(wanted, library.taken(), ending)
    _place(source, extras, adapter, library.folder / name, title)
    library.rescan()
    return Arrival(name, title, _remarks(library, name))


def _refuse_known(source: Path, library: AdapterLibrary) -> None:
    if source.is_dir():
        return
    size = source.stat().st_size
    alike = [entry for entry in library.usable if entry.stamp.size == size]
    if not alike:
        return
    with source.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    for entry in alike:
        if entry.sha256() == digest:
            raise FormatError(f"the same file is in the library already, as {entry.title!r}")


def _place(source: Path, extras: Path, adapter: Adapter, folder: Path, title: str) -> None:
    """Write everything beside the place, then move it there in one go."""
    partial = folder.with_name(f".{folder.name}.{secrets.token_hex(6)}.partial")
    try:
        partial.mkdir(parents=True)
        _write_file(source, adapter, partial / ADAPTER_FILE)
        info = dataclasses.replace(adapter.info, name=folder.name, title=title)
        card = write_card(info, thumbnail="")
        if (extras / CARD_FILE).is_file():
            card = (extras / CARD_FILE).read_text(encoding="utf-8", errors="replace")
        (partial / CARD_FILE).write_text(card, encoding="utf-8")
        if (extras / EMBEDDINGS).is_file():
            read_word(extras / EMBEDDINGS, adapter.info.training.get("new_token", ""))
            shutil.copyfile(extras / EMBEDDINGS, partial / EMBEDDINGS)
        if (extras / THUMBNAIL_FILE).is_file() or _unwrap_picture(partial, extras):
            write_thumbnail(extras / THUMBNAIL_FILE, partial / THUMBNAIL_FILE, CARD_SIDE)
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _write_file(source: Path, adapter: Adapter, target: Path) -> None:
    """The library holds native files and those of other programs, but none that needs a second."""
    if formats.kind(source) is formats.Kind.PEFT_SHIRA:
        adapter.save(target)
    elif source.is_dir():
        ranks = [one.rank for one in adapter.deltas.values() if isinstance(one, LowRankDelta)]
        lora.save(adapter, target, max(ranks, default=1))
    else:
        shutil.copyfile(source, target)


def _unwrap_picture(folder: Path, extras: Path) -> bool:
    """Lay down the picture that the file itself may carry; say whether it does."""
    data = modelspec.picture(container.read_header(folder / ADAPTER_FILE).metadata)
    if data:
        (extras / THUMBNAIL_FILE).write_bytes(data)
    return bool(data)


def _remarks(library: AdapterLibrary, name: str) -> tuple[str, ...]:
    found = next((entry for entry in library.entries if entry.name == name), None)
    if found is None:
        return ()
    remarks = [f"It cannot be used here: {found.problem}."] if found.problem else []
    if found.is_namesake:
        remarks.append(f"Another one has this title too: this one's folder is {name}.")
    word = word_told(found)
    remarks += [f"It brings a word of its own, {word}."] if word else []
    if not found.info.trigger_words:
        remarks.append("It names no trigger words: write them down under Edit.")
    return tuple(remarks)
