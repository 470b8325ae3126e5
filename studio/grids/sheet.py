"""A grid of pictures as one labelled picture, drawn with the font that Pillow carries."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

CELL = 384
GAP = 16
LABEL = 36
TEXT_SIZE = 17
PAPER, INK, FAINT, EMPTY = "#ffffff", "#24262b", "#7a7d86", "#f0f0f2"


@dataclass(frozen=True)
class SheetCell:
    """A picture under its label, or the words that stand where it should be; `note` below it."""

    label: str
    picture: Path | None
    words: str = ""
    note: str = ""


def contact_sheet(
    caption: str, rows: Sequence[Sequence[SheetCell]], foot: Sequence[str] = ()
) -> Image.Image:
    """Draw the rows below a caption, and `foot` line by line below them.

    Every picture is fitted into 384 x 384 px.
    """
    columns = max(len(row) for row in rows)
    note = LABEL if any(cell.note for row in rows for cell in row) else 0
    pitch = LABEL + CELL + note + GAP
    width = columns * (CELL + GAP) + GAP
    height = GAP + LABEL + len(rows) * pitch + len(foot) * LABEL
    sheet = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(TEXT_SIZE)
    draw.text((GAP, GAP), _one_line(caption, width - 2 * GAP, font), INK, font)
    for i, row in enumerate(rows):
        for j, cell in enumerate(row):
            corner = GAP + j * (CELL + GAP), GAP + LABEL + i * pitch
            _draw_cell(sheet, draw, cell, corner, font)
    for i, words in enumerate(foot):
        top = GAP + LABEL + len(rows) * pitch + i * LABEL
        draw.text((GAP, top), _one_line(words, width - 2 * GAP, font), INK, font)
    return sheet


def _draw_cell(
    sheet: Image.Image,
    draw: ImageDraw.ImageDraw,
    cell: SheetCell,
    corner: tuple[int, int],
    font: ImageFont.ImageFont | ImageFont.FreeTypeFont,
) -> None:
    left, top = corner
    draw.text((left, top + 8), _one_line(cell.label, CELL, font), INK, font)
    top += LABEL
    draw.text((left, top + CELL + 8), _one_line(cell.note, CELL, font), FAINT, font)
    if cell.picture is None:
        draw.rectangle((left, top, left + CELL, top + CELL), EMPTY)
        draw.multiline_text((left + GAP, top + GAP), textwrap.fill(cell.words, 38), FAINT, font)
        return
    with Image.open(cell.picture) as picture:
        sheet.paste(_fitted(picture.convert("RGB")), (left, top))


def _fitted(picture: Image.Image) -> Image.Image:
    whole = CELL // max(picture.size)
    if whole >= 2:
        # Only a whole factor keeps every pixel of a small picture square and of one size.
        size = picture.width * whole, picture.height * whole
        return picture.resize(size, Image.Resampling.NEAREST)
    scale = CELL / max(picture.size)
    size = round(picture.width * scale), round(picture.height * scale)
    return picture.resize(size, Image.Resampling.LANCZOS)


def _one_line(text: str, width: int, font: ImageFont.ImageFont | ImageFont.FreeTypeFont) -> str:
    text = " ".join(text.split())
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}...") > width:
        text = text[:-1]
    return f"{text.rstrip()}..."
