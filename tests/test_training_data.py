"""Folders of images as people have them: stray files, odd formats, missing captions."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from training.data import read_folder, shared_words
from training.errors import DataError
from training.images import Framing, fit, open_image, to_pixels

RED = (255, 0, 0)
WHITE = (255, 255, 255)


def picture(path: Path, caption: str | None = "a thing", size: tuple[int, int] = (8, 8)) -> Path:
    Image.new("RGB", size, RED).save(path)
    if caption is not None:
        path.with_suffix(".txt").write_text(caption)
    return path


def test_stray_files_are_passed_over(tmp_path: Path) -> None:
    picture(tmp_path / "b.png", "a b")
    picture(tmp_path / "a.JPG", "\n a \t a ")
    for name in (".DS_Store", "Thumbs.db", "._b.png", "CREDITS.md", "LICENSE.txt", "notes.json"):
        (tmp_path / name).write_bytes(b"\x00stray")
    (tmp_path / "sub.png").mkdir()
    dataset = read_folder(tmp_path)
    assert [(image.path.name, image.caption) for image in dataset.images] == [
        ("a.JPG", "a a"),
        ("b.png", "a b"),
    ]
    assert dataset.remarks == ()


def test_unsupported_formats_are_named(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "phone.heic").write_bytes(b"heic")
    assert read_folder(tmp_path).remarks == (
        "phone.heic was left out: its format is not supported, save it as PNG or JPEG",
    )


def test_unreadable_images_are_all_named_or_left_out_on_request(tmp_path: Path) -> None:
    whole = picture(tmp_path / "whole.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.jpg").write_text("not an image")
    (tmp_path / "empty.webp").touch()
    with pytest.raises(DataError) as caught:
        read_folder(tmp_path)
    assert all(name in str(caught.value) for name in ("cut.png", "text.jpg", "empty.webp"))
    assert "skip_unreadable=true" in str(caught.value)
    dataset = read_folder(tmp_path, skip_unreadable=True)
    assert [image.path.name for image in dataset.images] == ["whole.png"]
    assert len(dataset.remarks) == 3


def test_only_unreadable_images_are_an_error_even_on_request(tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("not an image")
    with pytest.raises(DataError, match=r"text\.jpg"):
        read_folder(tmp_path, skip_unreadable=True)


@pytest.mark.parametrize("make", ["nothing", "file", "empty", "nested"])
def test_useless_folders_are_explained(tmp_path: Path, make: str) -> None:
    folder = tmp_path / "data"
    if make == "file":
        folder.touch()
    elif make != "nothing":
        folder.mkdir()
    if make == "nested":
        (folder / "robot").mkdir()
    expected = {
        "nothing": "does not exist",
        "file": "is a file, not a folder",
        "empty": "has no images",
        "nested": r"subfolders \(robot\)",
    }[make]
    with pytest.raises(DataError, match=expected):
        read_folder(folder)


def test_missing_captions_are_named_or_filled_by_the_instance_prompt(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", "a robot")
    picture(tmp_path / "b.png", None)
    picture(tmp_path / "c.png", "  \n")
    with pytest.raises(DataError) as caught:
        read_folder(tmp_path)
    assert str(caught.value).splitlines()[1:] == ["  - b.png", "  - c.png"]
    captions = read_folder(tmp_path, instance_prompt="a photo of sks").captions
    assert captions == ("a robot", "a photo of sks", "a photo of sks")


def test_an_image_comes_once_with_each_of_its_captions(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", "robot, noto style\n\n  a   robot \n")
    picture(tmp_path / "b.png", "robot")
    dataset = read_folder(tmp_path)
    assert [(image.path.stem, image.caption) for image in dataset.images] == [
        ("a", "robot, noto style"),
        ("a", "a robot"),
        ("b", "robot"),
    ]
    assert dataset.files == 2
    rows = [{"file_name": "a.png", "text": text} for text in ("one", "two", "")]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert read_folder(tmp_path, instance_prompt="x").captions == ("one", "two", "x")


def test_captions_must_be_utf8(tmp_path: Path) -> None:
    picture(tmp_path / "a.png").with_suffix(".txt").write_bytes(b"caf\xe9")
    picture(tmp_path / "b.png").with_suffix(".txt").write_bytes(b"\xef\xbb\xbfcaf\xc3\xa9")
    with pytest.raises(DataError, match=r"UTF-8[\s\S]*a\.txt"):
        read_folder(tmp_path)
    (tmp_path / "a.png").unlink()
    assert read_folder(tmp_path).captions == ("café",)


def test_metadata_lists_captions_of_files_in_subfolders_too(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", "beside")
    (tmp_path / "more").mkdir()
    picture(tmp_path / "more" / "b.png", None)
    rows = [{"file_name": "more/b.png", "text": "b"}, {"file_name": "a.png", "caption": "a"}]
    (tmp_path / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    assert read_folder(tmp_path).captions == ("a", "b")


def test_all_faults_of_metadata_are_reported(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    lines = ['{"file_name": "a.png"', "[]", '{"text": "x"}', '{"file_name": "no.png"}']
    lines += ['{"file_name": "../a.png", "text": "x"}']
    (tmp_path / "metadata.jsonl").write_bytes(
        "\n".join(lines).encode() + b'\n{"file_name": "\xff"}'
    )
    with pytest.raises(DataError) as caught:
        read_folder(tmp_path)
    faults = str(caught.value).splitlines()[1:]
    assert [fault.split(":")[0] for fault in faults] == [f"  - line {n}" for n in range(1, 7)]
    assert "no file no.png" in faults[3]
    assert "outside the folder" in faults[4]


@pytest.mark.parametrize(
    ("captions", "shared"),
    [
        (["a cat, ink style", "two dogs, ink style"], "ink style"),
        (["lion, flat style, ink", "red car, flat style, ink"], "flat style, ink"),
        (["flat style, ink. A lion", "Flat, flat style, ink, car"], "flat style, ink"),
        (["sks dog on a mat", "the sks dog"], "sks dog"),
        (["same words"], "same words"),
        (["b c", "d e"], ""),
        (["a robot, flat style", "a robot in twemoji style"], "robot"),
        (["a thing 1, ink style", "a thing 2, ink style"], "ink style"),
        (["the a", "a the"], ""),
        (["car style", "carstyle"], ""),
    ],
)
def test_shared_words(captions: list[str], shared: str) -> None:
    assert shared_words(captions) == shared


def test_odd_images_become_upright_rgb_on_white(tmp_path: Path) -> None:
    half = Image.new("RGBA", (2, 1), (*RED, 255))
    half.putpixel((1, 0), (0, 0, 0, 0))
    half.save(tmp_path / "alpha.png")
    half.save(tmp_path / "alpha.webp", lossless=True)
    half.convert("P").save(
        tmp_path / "palette.png", transparency=half.convert("P").getpixel((1, 0))
    )
    Image.new("LA", (2, 1), (0, 0)).save(tmp_path / "grey-alpha.png")
    Image.new("L", (2, 1), 51).save(tmp_path / "grey.png")
    Image.new("1", (2, 1), 1).save(tmp_path / "bits.png")
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "print.jpg", quality=100)
    Image.fromarray(np.full((1, 2), 65535 // 5, np.uint16)).save(tmp_path / "deep.png")
    Image.fromarray(np.full((1, 2), 0.2, np.float32)).save(tmp_path / "float.tiff")
    frames = [Image.new("RGB", (2, 1), color) for color in (RED, WHITE)]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    expected = {
        "alpha.png": (RED, WHITE),
        "alpha.webp": (RED, WHITE),
        "palette.png": (RED, WHITE),
        "grey-alpha.png": (WHITE, WHITE),
        "grey.png": ((51,) * 3, (51,) * 3),
        "bits.png": (WHITE, WHITE),
        "deep.png": ((51,) * 3, (51,) * 3),
        "float.tiff": ((51,) * 3, (51,) * 3),
        "moving.gif": (RED, RED),
        "print.jpg": (RED, RED),
    }
    for name, (left, right) in expected.items():
        image = open_image(tmp_path / name)
        assert image.mode == "RGB", name
        for place, color in ((0, left), (1, right)):
            found = np.array(image.getpixel((place, 0)), dtype=int)
            assert np.abs(found - color).max() <= 2, name


def test_exif_rotation_is_applied(tmp_path: Path) -> None:
    image = Image.new("RGB", (2, 1), WHITE)
    image.putpixel((0, 0), RED)
    exif = Image.Exif()
    exif[0x0112] = 6  # shown a quarter turn clockwise
    image.save(tmp_path / "turned.png", exif=exif)
    upright = open_image(tmp_path / "turned.png")
    assert upright.size == (1, 2)
    assert upright.getpixel((0, 0)) == RED


@pytest.mark.parametrize(
    ("size", "framing"),
    [
        ((32, 32), Framing((32, 32), (0, 0), (32, 32))),
        ((128, 64), Framing((64, 128), (0, 16), (32, 32))),
        ((64, 160), Framing((160, 64), (24, 0), (32, 32))),
        ((8, 16), Framing((16, 8), (16, 0), (32, 32))),
        ((1000, 1), Framing((1, 1000), (0, 15984), (32, 32))),
        ((1, 65535), Framing((65535, 1), (1048544, 0), (32, 32))),
    ],
)
def test_square_and_its_framing(size: tuple[int, int], framing: Framing) -> None:
    square, found = fit(Image.new("RGB", size), (32, 32), (0.5, 0.5))
    assert square.size == (32, 32)
    assert found == framing
    assert found.time_ids == (*framing.original_size, *framing.crop_top_left, 32, 32)


def test_square_is_the_middle_of_the_scaled_image() -> None:
    stripes = Image.new("RGB", (96, 32), WHITE)
    stripes.paste(RED, (32, 0, 64, 32))
    square, _ = fit(stripes, (32, 32), (0.5, 0.5))
    assert torch.equal(to_pixels(square), to_pixels(Image.new("RGB", (32, 32), RED)))


@pytest.mark.parametrize("size", [(97, 61), (61, 97), (20, 13), (33, 32), (1, 9), (500, 40)])
def test_square_equals_a_cut_out_of_the_whole_scaled_image(size: tuple[int, int]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    square, framing = fit(image, (32, 32), (0.5, 0.5))
    scale = 32 / min(size)
    scaled = image.resize([round(length * scale) for length in size], Image.Resampling.LANCZOS)
    top, left = framing.crop_top_left
    cut = scaled.crop((left, top, left + 32, top + 32))
    assert np.abs(np.asarray(square, dtype=int) - np.asarray(cut, dtype=int)).max() <= 1


def test_pixels_span_minus_one_to_one() -> None:
    pixels = to_pixels(Image.new("RGB", (3, 2), (0, 255, 51)))
    assert pixels.shape == (3, 2, 3)
    assert pixels[:, 0, 0].tolist() == pytest.approx([-1, 1, -0.6])
