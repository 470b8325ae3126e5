"""Zip files from outside: only the few members that make an adapter are read, within limits."""

import zipfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from shira_diffusion.cards import EMBEDDINGS
from shira_diffusion.errors import FormatError
from studio.library import ADAPTER_FILE, CARD_FILE, MAX_CARD, THUMBNAIL_FILE
from studio.thumbnails import MAX_BYTES as MAX_THUMBNAIL

PEFT_CONFIG, PEFT_FILE = "adapter_config.json", "adapter_model.safetensors"
MAX_MEMBERS = 1000
MAX_EMBEDDINGS = 16 * 2**20
_CHUNK = 2**20
_SUFFIX = ".safetensors"


def unpack(file: Path, folder: Path, most: int) -> Path:
    """Write the adapter in `file` into the empty `folder`; return its file, or the PEFT folder.

    Members get our names, whatever theirs are. At most `most` bytes of weights are written,
    whatever the archive claims. Raises `FormatError`.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            members = _members(archive)
            weights, wanted = _wanted(members)
            limits = {
                CARD_FILE: MAX_CARD,
                THUMBNAIL_FILE: MAX_THUMBNAIL,
                PEFT_CONFIG: MAX_CARD,
                EMBEDDINGS: MAX_EMBEDDINGS,
            }
            for name, member in wanted.items():
                _write(archive, member, folder / name, limits.get(name, most))
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, OSError) as error:
        raise FormatError(f"the zip file cannot be read ({error}); make it again") from error
    return folder / weights if weights else folder


def _members(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    infos = archive.infolist()
    if len(infos) > MAX_MEMBERS:
        raise FormatError(f"the zip file has {len(infos):,} members; put the adapter alone into it")
    files = (info for info in infos if not info.is_dir())
    named = {PurePosixPath(info.filename): info for info in files}
    return {path.name: info for path, info in named.items() if not _is_stray(path)}


def _is_stray(path: PurePosixPath) -> bool:
    return any(part.startswith((".", "__MACOSX")) for part in path.parts)


def _wanted(
    members: Mapping[str, zipfile.ZipInfo],
) -> tuple[str, dict[str, zipfile.ZipInfo]]:
    """The name of the weights' file ("" for a PEFT folder), and which member becomes what."""
    if PEFT_CONFIG in members and PEFT_FILE in members:
        return "", {name: members[name] for name in (PEFT_CONFIG, PEFT_FILE)}
    if "data.pkl" in members:
        raise FormatError(
            "it is a pickle file, which may run any program when it is opened, so it is not read; "
            "get the adapter as .safetensors"
        )
    files = [name for name in members if name.lower().endswith(_SUFFIX)]
    weights = [name for name in files if name != EMBEDDINGS]
    if len(weights) != 1:
        raise FormatError(
            f"the zip file has {len(weights)} {_SUFFIX} files; put one adapter into it"
        )
    beside = (CARD_FILE, THUMBNAIL_FILE, EMBEDDINGS)
    extras = {name: members[name] for name in beside if name in members}
    return ADAPTER_FILE, {ADAPTER_FILE: members[weights[0]], **extras}


def _write(archive: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path, most: int) -> None:
    written = 0
    with archive.open(member) as source, target.open("wb") as file:
        while chunk := source.read(_CHUNK):
            written += len(chunk)
            if written > most:
                raise FormatError(f"{target.name} in the zip file is larger than {most:,} bytes")
            file.write(chunk)
