"""The training images of a folder and their captions, checked before anything is trained.

Captions come from `metadata.jsonl` if it is there (`file_name` and `text` in every line), else from
a .txt file of the same name beside each image; what has none gets the instance prompt. An image
with several captions, one a line (or several lines of `metadata.jsonl`), is trained on with each.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from training.errors import DataError, bullets
from training.images import SUFFIXES, UNREADABLE, Size, open_image
from training.loss_masks import is_mask, orphans

METADATA = "metadata.jsonl"
_ARTICLES = ("a", "an", "the")
_PUNCTUATION = ",.;:!?"
CAPTION_KEYS = ("text", "caption", "prompt")
# Formats of pictures that are not read: worth a word, not a silent skip.
UNSUPPORTED = frozenset(
    {".heic", ".heif", ".svg", ".psd", ".xcf", ".jxl", ".jp2", ".tga", ".exr", ".hdr"}
    | {".raw", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2"}
)


@dataclass(frozen=True)
class CaptionedImage:
    """One training image with one of its captions, its upright size and its file's sha256.

    `mask` is the file that says what of it counts, see `training.loss_masks`.
    """

    path: Path
    caption: str
    size: Size
    digest: str
    mask: Path | None = None

    @classmethod
    def of(cls, path: Path, caption: str, size: Size, mask: Path | None = None) -> "CaptionedImage":
        """Return the image in the file `path`, which was found to be of `size`."""
        return cls(path, caption, size, _digest(path), mask)

    @property
    def content(self) -> str:
        """All that a run learns from, as text: the same for the same."""
        mask = f" {_digest(self.mask)}" if self.mask else ""
        return f"{self.digest} {self.caption}{mask}"


@dataclass(frozen=True)
class Dataset:
    """The images of folders, by folder and name, and remarks on what was left out.

    `images` holds an image once for each of its captions.
    """

    folders: tuple[Path, ...]
    images: tuple[CaptionedImage, ...]
    remarks: tuple[str, ...]
    words: tuple[str, ...]  # what the captions of each folder turn on
    prompts: tuple[str, ...]  # a caption of each folder

    @property
    def captions(self) -> tuple[str, ...]:
        """Every image's captions."""
        return tuple(image.caption for image in self.images)

    @property
    def files(self) -> int:
        """How many image files there are."""
        return len({image.path for image in self.images})


def read_folder(
    folder: Path, *, instance_prompt: str = "", skip_unreadable: bool = False
) -> Dataset:
    """Find and check the images of `folder` (not of its subfolders).

    Raises `DataError`, which names every file that is at fault.
    """
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "does not exist"
        raise DataError(f"The data folder {folder} {what}. Name a folder of images with data=.")
    visible = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    pictures = [path for path in visible if path.suffix.lower() in SUFFIXES and path.is_file()]
    paths = [path for path in pictures if not is_mask(path)]
    remarks = [
        f"{path.name} was left out: its format is not supported, save it as PNG or JPEG"
        for path in visible
        if path.suffix.lower() in UNSUPPORTED
    ]
    remarks += [
        f"{path.name} was left out: there is no image that it is the mask of"
        for path in orphans([path for path in pictures if is_mask(path)], paths)
    ]
    metadata = folder / METADATA
    captions = _listed_captions(metadata) if metadata.is_file() else _captions_beside(paths)
    if metadata.is_file():
        paths = sorted({*paths, *captions})
    if not paths:
        raise DataError(_no_images(folder, visible, remarks))
    sizes, unreadable = _read(paths)
    if unreadable and (not skip_unreadable or len(unreadable) == len(paths)):
        headline = (
            f"{len(unreadable)} of {len(paths)} images cannot be read (replace or remove them, or "
            "set skip_unreadable=true to train without them):"
        )
        raise DataError(bullets(headline, list(unreadable.values())))
    remarks += [f"{fault}: left out" for fault in unreadable.values()]
    images = _captioned(folder, sizes, captions, instance_prompt)
    shared = shared_words([image.caption for image in images])
    return Dataset(
        folders=(folder,),
        images=images,
        remarks=tuple(remarks),
        words=(shared,) if shared else (),
        prompts=(images[0].caption,),
    )


def shared_words(captions: Sequence[str]) -> str:
    """Return the longest run of words that all captions share, "" when there is none.

    It is what captions such as "a cat, ink style", "a boat, ink style" turn on. Captions are
    compared without punctuation and no run starts with an article; of equally long runs the first
    of the shortest caption is taken, as it is written there but for punctuation at its ends.
    """
    written = min((caption.split() for caption in captions), key=len)
    plain = [[word.strip(_PUNCTUATION) for word in caption.split()] for caption in captions]
    shortest = [word.strip(_PUNCTUATION) for word in written]
    texts = [f" {' '.join(words)} " for words in plain]
    best = range(0)
    for start, first in enumerate(shortest):
        for end in range(len(shortest), start, -1):
            run = shortest[start:end]
            if len(run) <= len(best) or first in _ARTICLES:
                break
            if all(f" {' '.join(run)} " in text for text in texts):
                best = range(start, end)
    return " ".join(written[place] for place in best).strip(_PUNCTUATION + " ")


def _captioned(
    folder: Path,
    sizes: Mapping[Path, Size],
    captions: Mapping[Path, Sequence[str]],
    instance_prompt: str,
) -> tuple[CaptionedImage, ...]:
    missing = [path.name for path in sizes if not captions.get(path)]
    if missing and not instance_prompt:
        remedy = (
            f"add a .txt file of the same name to each, a line to {METADATA}, or one caption for "
            "all of them with instance_prompt="
        )
        headline = f"{len(missing)} of {len(sizes)} images in {folder} have no caption ({remedy}):"
        raise DataError(bullets(headline, missing))
    return tuple(
        CaptionedImage.of(path, caption, size)
        for path, size in sizes.items()
        for caption in captions.get(path) or [instance_prompt]
    )


def _captions_beside(paths: Sequence[Path]) -> dict[Path, list[str]]:
    captions: dict[Path, list[str]] = {}
    faults = []
    for path in paths:
        beside = path.with_suffix(".txt")
        if not beside.is_file():
            continue
        try:
            lines = beside.read_text(encoding="utf-8-sig").splitlines()
            captions[path] = [" ".join(line.split()) for line in lines if line.strip()]
        except UnicodeDecodeError:
            faults.append(beside.name)
    if faults:
        raise DataError(bullets("These captions are not UTF-8 text, save them as such:", faults))
    return captions


def _listed_captions(metadata: Path) -> dict[Path, list[str]]:
    captions: dict[Path, list[str]] = {}
    faults = []
    for number, line in enumerate(metadata.read_bytes().splitlines(), start=1):
        if not line.strip():
            continue
        try:
            path, caption = _listed_caption(metadata.parent, line.decode("utf-8-sig"))
            captions.setdefault(path, []).extend([caption] if caption else [])
        except ValueError as error:
            faults.append(f"line {number}: {error}")
    if faults:
        raise DataError(bullets(f"{metadata} has faults:", faults))
    return captions


def _listed_caption(folder: Path, line: str) -> tuple[Path, str]:
    row = json.loads(line)
    if not isinstance(row, dict) or not isinstance(row.get("file_name"), str):
        raise ValueError("it has no file_name")
    path = folder / row["file_name"]
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{row['file_name']} is outside the folder")
    if not path.is_file():
        raise ValueError(f"there is no file {row['file_name']}")
    caption = next((row[key] for key in CAPTION_KEYS if isinstance(row.get(key), str)), "")
    return path, " ".join(caption.split())


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _read(paths: Sequence[Path]) -> tuple[dict[Path, Size], dict[Path, str]]:
    """Return the upright sizes of the images, and what is wrong with those that have none."""
    sizes, faults = {}, {}
    for path in paths:
        try:
            image = open_image(path)
            sizes[path] = (image.height, image.width)
        except UNREADABLE as error:
            faults[path] = f"{path.name} ({error})"
    return sizes, faults


def _no_images(folder: Path, visible: Sequence[Path], remarks: Sequence[str]) -> str:
    subfolders = [path.name for path in visible if path.is_dir()]
    remedy = "Put images into it or name another folder with data=."
    if subfolders:
        remedy = f"It has subfolders ({', '.join(subfolders[:5])}): name one of them with data=."
    headline = f"The data folder {folder} has no images ({', '.join(sorted(SUFFIXES))}). {remedy}"
    return bullets(headline, remarks)
