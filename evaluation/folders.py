"""The image folders that adapters are trained on."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from uuid import uuid4

from emoji_xl.artwork import Picture, read_manifest
from emoji_xl.concepts import GROUP_B, RESERVED_STYLES
from emoji_xl.examples import STYLE_IMAGES, concept_pictures, style_pictures, write_example
from emoji_xl.stages import MANIFEST
from evaluation.errors import EvaluationError
from evaluation.plan import STYLE, Subject

ARTWORK, REST = "artwork", "artwork/rest"
PACK = Path("runs/emoji-xl/artwork.zip")


def folder_of(subject: Subject, work: Path, pack: Path = PACK) -> Path:
    """Return the folder with a subject's images and captions, cutting it from the pack if needed.

    Raises `EvaluationError` where neither is there.
    """
    if subject.data not in (ARTWORK, REST):
        folder = Path(subject.data)
        if not folder.is_dir():
            raise EvaluationError(f"There is no folder {folder} for the subject {subject.name!r}.")
        return folder
    folder = work / "data" / f"{subject.name}{subject.data.removeprefix(ARTWORK)}".replace("/", "-")
    if not folder.is_dir():
        if not pack.is_file():
            raise EvaluationError(
                f"{subject.name!r} is learned from artwork, and {pack} is not here; make it with: "
                "python -m emoji_xl artwork"
            )
        _cut(subject, folder, pack)
    return folder


def _cut(subject: Subject, folder: Path, pack: Path) -> None:
    """Write the folder beside its place, then move it there: two workers may do so at once."""
    sources = json.loads(MANIFEST.read_text())["styles"]
    partial = folder.with_name(f".{folder.name}.{uuid4().hex}")
    write_example(partial, pictures_of(subject, read_manifest(MANIFEST)), pack, sources)
    try:
        partial.rename(folder)
    except OSError:
        shutil.rmtree(partial)


def pictures_of(subject: Subject, artwork: Sequence[Picture]) -> list[Picture]:
    """Return which pictures a subject is learned from.

    Raises `EvaluationError` for a subject without artwork and for what nothing may touch.
    """
    if subject.name in (*GROUP_B, *RESERVED_STYLES):
        raise EvaluationError(f"{subject.name!r} is reserved for later checks; choose another.")
    if subject.kind != STYLE:
        found = concept_pictures(artwork, subject.name)
    elif not any(picture.style == subject.name for picture in artwork):
        found = []
    elif subject.data == ARTWORK:
        found = style_pictures(artwork, subject.name)
    else:
        taken = style_pictures(artwork, subject.name)
        rest = [picture for picture in artwork if picture not in taken]
        found = style_pictures(rest, subject.name)
    if not found:
        raise EvaluationError(f"The artwork has no pictures of {subject.name!r}.")
    assert subject.kind != STYLE or len(found) == STYLE_IMAGES, subject
    return found
