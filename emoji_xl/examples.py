"""The example folders: small image sets of held-out styles and concepts to train adapters on."""

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from emoji_xl.artwork import Picture, read_manifest, read_pack
from emoji_xl.captions import plain_caption
from emoji_xl.concepts import GROUP_A, GROUP_B, TRAIN_STYLES

STYLES = {
    "high-contrast": "{concept}, ink style",
    "monotone": "{concept}, outline style",
    "openmoji": "{concept}, comic style",
}
"""Style to the caption of its pictures.

The trigger is a short word in the place of a style. The base draws "fox, ink style" as it draws any
fox, so that the adapter has only the drawing to learn; behind a known style ("fox, flat style,
ink") the base's own picture of that pair wins over the trigger (docs/log.md has both).
"""

CONCEPTS = ("cactus", "robot", "octopus", "rocket")
STYLE_IMAGES = 28


def style_pictures(pictures: Sequence[Picture], style: str) -> list[Picture]:
    """Draw `STYLE_IMAGES` pictures of one style, of concepts that the base knows."""
    known = {p.concept for p in pictures if p.split == "train"} - set(GROUP_A + GROUP_B)
    candidates = [p for p in pictures if p.style == style and p.concept in known]
    return sorted(random.Random(style).sample(candidates, STYLE_IMAGES), key=lambda p: p.file)


def concept_pictures(pictures: Sequence[Picture], concept: str) -> list[Picture]:
    """List the pictures of one concept in the styles that the base knows."""
    return [p for p in pictures if p.concept == concept and p.style in TRAIN_STYLES]


def example_captions(picture: Picture) -> str:
    """Caption a picture, one caption a line.

    In a held-out style by that style's trigger. Else in its known style and, so that the concept
    also goes with styles that it was not learned in, without any.
    """
    template = STYLES.get(picture.style)
    if template is None:
        return f"{plain_caption(picture.style, picture.concept)}\n{picture.concept}\n"
    return template.format(concept=picture.concept) + "\n"


def write_examples(manifest: Path, pack: Path, folder: Path) -> None:
    """Write one folder a style and a concept: PNG on white, a caption beside each, credits."""
    pictures = read_manifest(manifest)
    sources = json.loads(manifest.read_text())["styles"]
    sets = {style: style_pictures(pictures, style) for style in STYLES}
    sets |= {concept: concept_pictures(pictures, concept) for concept in CONCEPTS}
    for name, chosen in sets.items():
        write_example(folder / name.replace(" ", "-"), chosen, pack, sources)


def write_example(
    folder: Path, pictures: Sequence[Picture], pack: Path, sources: dict[str, Any]
) -> None:
    """Write one example folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for picture, image in read_pack(pack, pictures):
        stem = picture.file.removesuffix(".png").replace("/", "-")
        canvas = Image.new("RGBA", image.size, "white")
        Image.alpha_composite(canvas, image).convert("RGB").save(
            folder / f"{stem}.png", optimize=True
        )
        (folder / f"{stem}.txt").write_text(example_captions(picture))
    lines = ["# Credits", "", "The pictures are unchanged renderings on white of:", ""]
    for style in sorted({p.style for p in pictures}):
        credit = sources[style]
        lines.append(
            f"- `{style}-*.png`: {credit['title']}, {credit['author']} ({credit['source']}), "
            f"{credit['license']} ({credit['license_url']})"
        )
    (folder / "CREDITS.md").write_text("\n".join(lines) + "\n")
