"""Image files as cameras, scanners and painting programs write them, and broken ones."""

import io
import random
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from training.data import read_folder
from training.images import UNREADABLE, open_image

RED = (255, 0, 0)
BLUE = (0, 0, 255)
GREEN = (0, 128, 0)
YELLOW = (255, 255, 0)
ORIENTATION = 0x0112


def quarters() -> Image.Image:
    """64 x 32: red, blue over green, yellow."""
    image = Image.new("RGB", (64, 32))
    for color, place in ((RED, (0, 0)), (BLUE, (32, 0)), (GREEN, (0, 16)), (YELLOW, (32, 16))):
        image.paste(color, (*place, place[0] + 32, place[1] + 16))
    return image


def corners(image: Image.Image) -> list[tuple[int, ...]]:
    """The colours of the quarters, read as a page is, each the nearest of the four."""
    width, height = image.size
    found = []
    for y in (height // 4, height * 3 // 4):
        for x in (width // 4, width * 3 // 4):
            pixel = np.array(image.getpixel((x, y)))
            found.append(min((RED, BLUE, GREEN, YELLOW), key=lambda c: np.abs(pixel - c).sum()))
    return found


# Row 0 and column 0 of the stored picture are shown at these sides (EXIF 2.3, table 6).
UPRIGHT = {
    1: [RED, BLUE, GREEN, YELLOW],
    2: [BLUE, RED, YELLOW, GREEN],
    3: [YELLOW, GREEN, BLUE, RED],
    4: [GREEN, YELLOW, RED, BLUE],
    5: [RED, GREEN, BLUE, YELLOW],
    6: [GREEN, RED, YELLOW, BLUE],
    7: [YELLOW, BLUE, GREEN, RED],
    8: [BLUE, YELLOW, RED, GREEN],
}


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tiff", "avif"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_every_orientation_of_a_camera_is_turned_upright(
    tmp_path: Path, suffix: str, orientation: int
) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    path = tmp_path / f"turned.{suffix}"
    quarters().save(path, exif=exif)
    image = open_image(path)
    assert image.size == ((64, 32) if orientation < 5 else (32, 64))
    assert corners(image) == UPRIGHT[orientation]


def deep_png(path: Path, pixel: list[int], color_type: int, transparent: list[int]) -> None:
    """Write 2 x 2 equal pixels of 16 bits, which Pillow itself cannot write in colour."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        crc = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", crc)

    row = b"\0" + np.tile(pixel, 2).astype(">u2").tobytes()
    key = np.array(transparent).astype(">u2").tobytes()
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 2, 16, color_type, 0, 0, 0))
        + (chunk(b"tRNS", key) if transparent else b"")
        + chunk(b"IDAT", zlib.compress(row * 2))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("pixel", "color_type", "transparent", "expected"),
    [
        ([13107], 0, [], (51, 51, 51)),
        ([13107], 0, [13107], (255, 255, 255)),
        ([13107], 0, [13108], (51, 51, 51)),
        ([65535, 13107, 0], 2, [], (255, 51, 0)),
        ([65535, 13107, 0], 2, [65535, 13107, 0], (255, 255, 255)),
        ([13107, 65535], 4, [], (51, 51, 51)),
        ([13107, 0], 4, [], (255, 255, 255)),
        ([65535, 0, 0, 0], 6, [], (255, 255, 255)),
        ([0, 0, 0, 32896], 6, [], (127, 127, 127)),
    ],
)
def test_sixteen_bit_png_keeps_its_brightness_and_its_holes_are_white(
    tmp_path: Path,
    pixel: list[int],
    color_type: int,
    transparent: list[int],
    expected: tuple[int, int, int],
) -> None:
    deep_png(tmp_path / "deep.png", pixel, color_type, transparent)
    assert open_image(tmp_path / "deep.png").getpixel((0, 0)) == expected


def test_palette_with_partial_transparency_is_blended_with_white(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 0])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "soft.png", transparency=bytes([255, 51]))
    image.save(tmp_path / "hole.gif", transparency=1)
    assert open_image(tmp_path / "soft.png").getpixel((0, 0)) == RED
    assert open_image(tmp_path / "soft.png").getpixel((1, 0)) == (204, 204, 204)
    assert open_image(tmp_path / "hole.gif").getpixel((1, 0)) == (255, 255, 255)


@pytest.mark.parametrize("name", ["print.jpg", "print.tif"])
def test_cmyk_of_a_printer_is_read_in_its_colours(tmp_path: Path, name: str) -> None:
    quarters().convert("CMYK").save(tmp_path / name)
    image = open_image(tmp_path / name)
    assert image.mode == "RGB"
    assert corners(image) == UPRIGHT[1]


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "gif", "tiff", "avif", "bmp"])
def test_damaged_file_is_read_or_refused_but_breaks_nothing(tmp_path: Path, suffix: str) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    whole = io.BytesIO()
    settings = {} if suffix in ("gif", "bmp") else {"exif": exif}
    quarters().save(whole, {"jpg": "JPEG"}.get(suffix, suffix.upper()), **settings)
    path, chance, refused = tmp_path / f"a.{suffix}", random.Random(0), 0
    for _ in range(150):
        damaged = bytearray(whole.getvalue())
        reach = min(len(damaged), chance.choice([60, 400]))
        for _ in range(chance.choice([1, 2, 8])):
            damaged[chance.randrange(reach)] = chance.randrange(256)
        path.write_bytes(damaged[: chance.choice([None, None, len(damaged) // 2])])
        try:
            assert open_image(path).mode == "RGB"
        except UNREADABLE:
            refused += 1
    assert refused > 10


def test_camera_raws_are_named_and_other_images_are_used(tmp_path: Path) -> None:
    for name in ("web.jfif", "phone.avif"):
        kind = "JPEG" if name.endswith("jfif") else None
        quarters().save(tmp_path / name, kind)
    for name in ("phone.HEIC", "camera.cr2", "layers.psd"):
        (tmp_path / name).touch()
    dataset = read_folder(tmp_path, instance_prompt="x")
    assert [image.path.name for image in dataset.images] == ["phone.avif", "web.jfif"]
    assert [remark.split()[0] for remark in dataset.remarks] == [
        "camera.cr2",
        "layers.psd",
        "phone.HEIC",
    ]
