"""Emoji artwork with open licences: fetched from npm, matched by name, rendered, packed.

The pictures come from Iconify's JSON packages (https://iconify.design/docs/icons/json.html), the
names and groups from emojibase (https://emojibase.dev).
"""

import io
import json
import re
import subprocess
import tarfile
import unicodedata
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from emoji_xl.concepts import (
    GROUP_A,
    GROUP_B,
    HELD_OUT_STYLES,
    PACKAGES,
    RESERVED_STYLES,
    TRAIN_STYLES,
    concept_name,
    held_out_pairs,
    is_concept,
)

VERSIONS = {
    "twemoji": "1.2.5",
    "noto": "1.2.9",
    "noto-v1": "1.2.5",
    "fxemoji": "1.2.2",
    "emojione": "1.2.3",
    "fluent-emoji-flat": "1.2.6",
    "fluent-emoji": "1.2.7",
    "fluent-emoji-high-contrast": "1.2.6",
    "emojione-monotone": "1.2.1",
    "openmoji": "1.2.29",
    "streamline-emojis": "1.2.4",
    "emojione-v1": "1.2.3",
}
EMOJIBASE = "emojibase-data@17.0.0"
PIXELS = 128
FEWEST_STYLES = 4
"""A concept counts only if at least so many of the training styles draw it."""


@dataclass(frozen=True)
class Picture:
    """One rendered emoji; `split` is train, pair, concept, style or reserved (see `split_of`)."""

    style: str
    concept: str
    icon: str
    split: str

    @property
    def file(self) -> str:
        """Name of its PNG in the pack."""
        return f"{self.style}/{self.concept.replace(' ', '-')}.png"


@dataclass(frozen=True)
class IconSet:
    """An Iconify package: SVG bodies by icon name, icon names by `normalise`d name or alias."""

    icons: dict[str, dict[str, Any]]
    by_name: dict[str, str]
    by_codepoint: dict[str, str]
    box: tuple[int, int]
    info: dict[str, Any]

    def svg(self, name: str) -> str:
        """Whole SVG document of one icon."""
        icon = self.icons[name]
        width, height = icon.get("width", self.box[0]), icon.get("height", self.box[1])
        return (
            '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'viewBox="{icon.get("left", 0)} {icon.get("top", 0)} {width} {height}">'
            f"{icon['body']}</svg>"
        )


def fetch_package(spec: str, cache: Path) -> Path:
    """Path of the tarball of the npm package `name@version`, downloaded on first use."""
    archive = cache / (spec.lstrip("@").replace("/", "-").replace("@", "-") + ".tgz")
    if not archive.exists():
        cache.mkdir(parents=True, exist_ok=True)
        subprocess.run(
            ["npm", "pack", "--silent", f"--pack-destination={cache}", spec],
            check=True,
            stdout=subprocess.DEVNULL,
        )
    return archive


def read_json(archive: Path, member: str) -> Any:
    """Parsed JSON file `member` of an npm tarball."""
    with tarfile.open(archive) as tar:
        file = tar.extractfile(f"package/{member}")
        assert file is not None, f"{archive.name} holds no {member}"
        return json.load(file)


def read_icon_set(package: str, cache: Path) -> IconSet:
    """Fetch and parse one Iconify package."""
    archive = fetch_package(f"@iconify-json/{package}@{VERSIONS[package]}", cache)
    icons = read_json(archive, "icons.json")
    side = icons.get("width", 16)
    aliases = {n: a["parent"] for n, a in icons.get("aliases", {}).items()}
    names = {n: icon for n, icon in aliases.items() if icon in icons["icons"]}
    names |= {n: n for n in icons["icons"]}
    return IconSet(
        icons=icons["icons"],
        by_name={normalise(name): icon for name, icon in names.items()},
        by_codepoint=read_json(archive, "chars.json"),
        box=(side, icons.get("height", side)),
        info=read_json(archive, "info.json"),
    )


def read_emoji(cache: Path) -> list[dict[str, Any]]:
    """Every emoji that belongs to the data set: label, hexcode, tags and subgroup's name."""
    archive = fetch_package(EMOJIBASE, cache)
    subgroups = read_json(archive, "meta/groups.json")["subgroups"]
    chosen = []
    for emoji in read_json(archive, "en/data.json"):
        subgroup = subgroups.get(str(emoji.get("subgroup")), "")
        if is_concept(emoji["label"], subgroup):
            chosen.append(emoji | {"subgroup": subgroup})
    return chosen


def normalise(name: str) -> str:
    """Letters and digits of `name` in lower case: what names have in common across packages."""
    return re.sub(r"[^a-z0-9]", "", unicodedata.normalize("NFKD", name).lower())


def find_icon(emoji: dict[str, Any], icons: IconSet, other_names: Iterable[str]) -> str | None:
    """Name of the icon that draws `emoji`, found by code point or by any of its names."""
    codepoint = emoji["hexcode"].replace("-FE0F", "").lower()
    if codepoint in icons.by_codepoint:
        return icons.by_codepoint[codepoint]
    names = [emoji["label"], *other_names]
    character = emoji["emoji"].removesuffix("\ufe0f")
    if len(character) == 1:
        names.append(unicodedata.name(character, ""))
    return next((icons.by_name[n] for n in map(normalise, names) if n in icons.by_name), None)


def split_of(style: str, concept: str, held_out: frozenset[tuple[str, str]]) -> str:
    """Which part of the data a picture belongs to.

    `train`: the base may see it. `pair`: known style and known concept, never seen together.
    `concept`: group A in a known style. `style`: a held-out style. `reserved`: untouched by all.
    """
    if style in RESERVED_STYLES or concept in GROUP_B:
        return "reserved"
    if style in HELD_OUT_STYLES:
        return "style"
    if concept in GROUP_A:
        return "concept"
    return "pair" if (style, concept) in held_out else "train"


def read_tags(cache: Path, concepts: Iterable[str]) -> dict[str, list[str]]:
    """Return the tags of each of `concepts`: other words that people use for it."""
    tags = {concept_name(emoji["label"]): emoji.get("tags", []) for emoji in read_emoji(cache)}
    return {concept: tags[concept] for concept in sorted(set(concepts))}


def match_pictures(cache: Path) -> tuple[list[Picture], dict[str, IconSet]]:
    """Find every picture of the data set, and the packages that draw them."""
    sets = {style: read_icon_set(package, cache) for style, package in PACKAGES.items()}
    found: dict[tuple[str, str], str] = {}
    for emoji in read_emoji(cache):
        codepoint = emoji["hexcode"].replace("-FE0F", "").lower()
        names = {s.by_codepoint[codepoint] for s in sets.values() if codepoint in s.by_codepoint}
        icons = {style: find_icon(emoji, icon_set, names) for style, icon_set in sets.items()}
        if sum(icons[style] is not None for style in TRAIN_STYLES) >= FEWEST_STYLES:
            concept = concept_name(emoji["label"])
            found |= {(style, concept): icon for style, icon in icons.items() if icon}
    known = [p for p in found if p[0] in TRAIN_STYLES and p[1] not in GROUP_A + GROUP_B]
    held_out = held_out_pairs(known)
    pictures = [Picture(s, c, icon, split_of(s, c, held_out)) for (s, c), icon in found.items()]
    return sorted(pictures, key=lambda picture: picture.file), sets


def render(svg: str) -> Image.Image:
    """Draw an SVG as RGBA, `PIXELS` square."""
    # Only the rendering machine needs resvg; reading a pack does without it.
    import resvg_py

    data = resvg_py.svg_to_bytes(
        svg_string=svg, width=PIXELS, height=PIXELS, skip_system_fonts=True
    )
    image = Image.open(io.BytesIO(bytes(data))).convert("RGBA")
    if image.size == (PIXELS, PIXELS):
        return image
    canvas = Image.new("RGBA", (PIXELS, PIXELS))
    image.thumbnail((PIXELS, PIXELS), Image.Resampling.LANCZOS)
    canvas.paste(image, ((PIXELS - image.width) // 2, (PIXELS - image.height) // 2))
    return canvas


def write_pack(pictures: Iterable[Picture], sets: dict[str, IconSet], pack: Path) -> None:
    """Render `pictures` into a zip of PNGs; the same input gives the same bytes."""
    pack.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(pack, "w", zipfile.ZIP_STORED) as archive:
        for picture in pictures:
            buffer = io.BytesIO()
            render(sets[picture.style].svg(picture.icon)).save(buffer, "PNG", optimize=True)
            # A fixed date: zip files otherwise carry the time of writing.
            archive.writestr(zipfile.ZipInfo(picture.file), buffer.getvalue())


def write_manifest(
    pictures: list[Picture], sets: dict[str, IconSet], tags: dict[str, list[str]], path: Path
) -> None:
    """Write which picture comes from where, under which licence, and what it is used for."""
    styles = {
        style: {
            "package": f"@iconify-json/{PACKAGES[style]}@{VERSIONS[PACKAGES[style]]}",
            "title": icon_set.info["name"],
            "author": icon_set.info["author"]["name"],
            "source": icon_set.info["author"]["url"],
            "license": icon_set.info["license"]["spdx"],
            "license_url": icon_set.info["license"]["url"],
        }
        for style, icon_set in sets.items()
    }
    tag_rows = _lines(f"{json.dumps(concept)}: {json.dumps(row)}" for concept, row in tags.items())
    picture_rows = _lines(json.dumps(asdict(picture)) for picture in pictures)
    path.write_text(
        f'{{\n  "styles": {json.dumps(styles, indent=4)},\n'
        f'  "tags": {{\n{tag_rows}\n  }},\n  "pictures": [\n{picture_rows}\n  ]\n}}\n'
    )


def _lines(rows: Iterable[str]) -> str:
    return ",\n".join(f"    {row}" for row in rows)


def read_manifest(path: Path) -> list[Picture]:
    """Pictures that a manifest lists, in the pack's order."""
    return [Picture(**row) for row in json.loads(path.read_text())["pictures"]]


def read_pack(pack: Path, pictures: Iterable[Picture]) -> Iterator[tuple[Picture, Image.Image]]:
    """Yield the RGBA image of each of `pictures`."""
    with zipfile.ZipFile(pack) as archive:
        for picture in pictures:
            yield picture, Image.open(io.BytesIO(archive.read(picture.file))).convert("RGBA")


def summary(pictures: Iterable[Picture]) -> str:
    """One line a split: how many pictures, concepts and styles."""
    pictures = list(pictures)
    lines = []
    for split, count in sorted(Counter(p.split for p in pictures).items()):
        part = [p for p in pictures if p.split == split]
        concepts, styles = {p.concept for p in part}, {p.style for p in part}
        lines.append(f"{split:9}{count:6} pictures, {len(concepts)} concepts, {len(styles)} styles")
    return "\n".join(lines)
