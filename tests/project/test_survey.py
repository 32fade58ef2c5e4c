"""The fast look at images: it agrees with the decoder about sizes, and with `prepare` about classes and splits."""

import io
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from deep_images import dicom, npy, png16
from PIL import Image, ImageFile

from visionpipe.data.decode import decode_image
from visionpipe.data.listing import Record, Rejected
from visionpipe.errors import DataError
from visionpipe.project.survey import BEGINNING, Header, header_of, survey


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(width: int, height: int, mode: str = "RGB") -> Image.Image:
    bands = len(Image.new(mode, (1, 1)).getbands())
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, bands), np.uint8)
    return Image.fromarray(pixels.squeeze(2) if bands == 1 else pixels, mode)


PROFILE = bytes(range(256)) * 400  # a colour profile of more bytes than are read at first
FILES = {  # what → content, whether it is stored as grey, whether it has transparency
    "PNG": (encoded(noise(31, 17), "PNG"), False, False),
    "PNG with alpha": (encoded(noise(31, 17, "RGBA"), "PNG"), False, True),
    "grey PNG": (encoded(noise(31, 17, "L"), "PNG"), True, False),
    "grey PNG with alpha": (encoded(noise(31, 17, "LA"), "PNG"), True, True),
    "deep PNG": (encoded(Image.fromarray(np.ones((17, 31), np.uint16)), "PNG"), True, False),
    "PNG with a palette": (encoded(noise(31, 17).quantize(9), "PNG", transparency=0), False, True),
    "JPEG": (encoded(noise(31, 17), "JPEG"), False, False),
    "progressive JPEG": (encoded(noise(31, 17), "JPEG", progressive=True), False, False),
    "JPEG behind a long profile": (encoded(noise(31, 17), "JPEG", icc_profile=PROFILE), False, False),
    "grey JPEG": (encoded(noise(31, 17, "L"), "JPEG"), True, False),
    "CMYK JPEG": (encoded(noise(31, 17, "CMYK"), "JPEG"), False, False),
    "GIF": (encoded(noise(31, 17), "GIF"), False, False),
    "BMP": (encoded(noise(31, 17), "BMP"), False, False),
    "TIFF": (encoded(noise(31, 17), "TIFF"), False, False),
    "large TIFF": (encoded(noise(310, 170), "TIFF", compression="tiff_lzw"), False, False),
    "lossy WebP": (encoded(noise(31, 17), "WEBP", lossless=False), False, False),
    "lossless WebP": (encoded(noise(31, 17), "WEBP", lossless=True), False, False),
    "lossless WebP with alpha": (encoded(noise(31, 17, "RGBA"), "WEBP", lossless=True), False, True),
    "WebP with alpha": (encoded(noise(31, 17, "RGBA"), "WEBP", lossless=False), False, True),
    "PPM": (encoded(noise(31, 17), "PPM"), False, False),
    "PGM": (encoded(noise(31, 17, "L"), "PPM"), True, False),
}


def record(content: bytes, asked: list[int] | None = None) -> Record:
    def read(most: int = -1) -> bytes:
        if asked is not None:
            asked.append(most)
        return content if most < 0 else content[:most]

    return Record(None, "a", "a/file", read)


@pytest.mark.parametrize("name", FILES)
def test_a_header_says_what_the_decoder_says(name):
    content, grey, transparent = FILES[name]
    height, width, _ = decode_image(content).shape
    header = header_of(record(content))
    assert isinstance(header, Header), header
    assert (header.width, header.height, header.grey, header.transparent) == (
        width,
        height,
        grey,
        transparent,
    )


def test_only_the_beginning_of_a_large_photograph_is_read():
    content, asked = encoded(noise(900, 600), "JPEG", quality=95), []
    assert len(content) > 4 * BEGINNING
    assert header_of(record(content, asked)).width == 900
    assert asked == [BEGINNING]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not an image in one of the formats"),
        (b"%PDF-1.7", "not an image in one of the formats"),
        (FILES["PNG"][0][:20], "damaged header"),
        (b"\xff\xd8\xff" + bytes(100), "damaged header"),
        (b"RIFF0000WEBPVP9 " + bytes(100), "an unknown kind of WebP"),
        (b"RIFF0000WEBPVP8X", "damaged header"),
        (b"P6 20000 20000 255\n", "20000 × 20000 pixels, more than 300,000,000 in all"),
    ],
)
def test_what_is_no_image_has_a_reason(content, reason):
    header = header_of(record(content))
    assert isinstance(header, Rejected)
    assert reason in header.reason


# Sources -----------------------------------------------------------------------------------------------


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def icons(counts: dict[str, int], width: int = 12, height: int = 10) -> dict[str, bytes]:
    content = encoded(noise(width, height), "PNG")
    return {f"{name}/{index}.png": content for name, count in counts.items() for index in range(count)}


def zipped(folder: Path, path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, file.relative_to(folder))
    return path


def test_pixels_are_never_decoded(tmp_path, monkeypatch):
    def load(*_):
        pytest.fail("pixels were decoded")

    write(tmp_path, {f"{name}/1.img": content for name, (content, _, _) in FILES.items()} | icons({"a": 4}))
    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    assert survey(tmp_path).images == len(FILES) + 4


def test_a_folder_and_its_archive_are_the_same(tmp_path):
    folder = write(tmp_path / "set", icons({"train/a": 5, "train/b": 3, "val/a": 2, "test/b": 1}))
    of_folder, of_archive = survey(folder, "set"), survey(zipped(folder, tmp_path / "set.zip"), "set")
    assert of_folder.classes == of_archive.classes == {"a": 7, "b": 4}
    assert of_folder.splits == of_archive.splits == {"train": 8, "validation": 2, "test": 1}
    assert (of_folder.source, of_archive.source) == ("folder", "zip")
    assert of_folder.one_size == of_archive.one_size == (10, 12)
    assert of_folder.pixels == of_archive.pixels == 11 * 120


def test_idx_files_are_a_source(tmp_path):
    for prefix, count in (("train", 20), ("t10k", 5)):
        header = b"".join(number.to_bytes(4) for number in (0x803, count, 9, 7))
        (tmp_path / f"{prefix}-images-idx3-ubyte").write_bytes(header + bytes(count * 63))
        labels = b"".join(number.to_bytes(4) for number in (0x801, count)) + bytes(
            i % 2 for i in range(count)
        )
        (tmp_path / f"{prefix}-labels-idx1-ubyte").write_bytes(labels)
    found = survey(tmp_path)
    assert (found.source, found.images, found.grey, found.one_size) == ("idx", 25, 25, (9, 7))
    assert found.splits == {"train": 20, "test": 5}


def test_the_lines_say_what_was_understood(tmp_path):
    files = icons({"cat": 30, "dog": 2}) | {
        "cat/big.png": encoded(noise(200, 40, "LA"), "PNG"),
        "cat/x.txt": b"no",
    }
    text = "\n".join(survey(write(tmp_path, files)).lines())
    assert "33 images in 2 classes" in text
    assert "cat 31, dog 2" in text
    assert "all sides 10 to 200" in text
    assert "PNG 33" in text
    assert "colour 32, grey 1; 1 with transparency" in text
    assert "uneven classes: 31 images of cat, 2 of dog" in text
    assert "fewer than 10 images of dog" in text
    assert "1 file left out, 'cat/x.txt': not an image" in text


def test_the_share_of_long_images_is_counted_whichever_side_is_long(tmp_path):
    sides = [(16, 10), (17, 10), (10, 17), (10, 10), (10, 16)]
    files = {
        f"{name}/{index}.png": encoded(noise(*side), "PNG")
        for name in "ab"
        for index, side in enumerate(sides)
    }
    found = survey(write(tmp_path, files))
    assert found.elongated == 0.4
    assert any("40% of the images are more than 1.6 times as long as wide" in line for line in found.odd)


def test_many_classes_are_not_all_named(tmp_path):
    counts = {f"class {number:02}": 4 for number in range(30)}
    (line,) = [line for line in survey(write(tmp_path, icons(counts))).lines() if "classes  " in line]
    assert "… 23 more …" in line
    assert line.count("class ") == 7


MISTAKES: list[tuple[Callable[[Path], object], str]] = [
    (lambda folder: None, "there is no such file or folder"),
    (lambda folder: folder.mkdir(), "holds no images: expected a folder of images for each class"),
    (lambda folder: folder.write_text("text"), "is neither a folder nor a zip archive"),
    (lambda folder: write(folder, icons({".": 3})), "holds 3 files that lie in no folder of a class"),
    (lambda folder: write(folder, icons({"cat": 3})), "holds only the class 'cat'"),
    (lambda folder: write(folder, {"a/1.txt": b"x", "b/2.txt": b"y"}), "no usable image in its folders; the first, 'a"),
    (lambda folder: write(folder, icons({"a": 4}) | {"b/1.txt": b"x"}), "the class 'b' has no usable image"),
    (lambda folder: write(folder, icons({"train/a": 4, "test/b": 4})), "the class 'b' has no usable image to train"),
    (lambda folder: write(folder, icons({"test/a": 4, "val/b": 4})), "but no folder train beside them"),
    (lambda folder: write(folder, icons({"a": 2, "b": 1})), "too few images to draw splits from: no class has 3"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "message"), MISTAKES)
def test_a_mistake_says_what_to_do(tmp_path, make, message):
    make(tmp_path / "photos")
    with pytest.raises(DataError) as caught:
        survey(tmp_path / "photos")
    assert message in str(caught.value)
    assert "photos" in str(caught.value) or "train" in message
    assert "\n" not in str(caught.value)


def test_five_thousand_files_take_a_second_or_two(tmp_path):
    content = encoded(noise(64, 64), "JPEG")
    with zipfile.ZipFile(tmp_path / "many.zip", "w") as archive:
        for number in range(5000):
            archive.writestr(f"{number % 7}/{number}.jpg", content)
    started = time.process_time()
    assert survey(tmp_path / "many.zip").images == 5000
    assert time.process_time() - started < 5


def tiff(values) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, values, photometric="minisblack", planarconfig="contig")
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "form"),
    [
        (npy(np.ones((12, 10, 5), np.uint16)), {"channels": 5, "depth": 16}),
        (npy(np.ones((12, 10), np.float32)), {"levels": "file", "channels": 1, "depth": 16}),
        (npy(np.ones((12, 10, 3), np.uint8)), {}),
        (dicom(np.ones((12, 10), np.uint16), bits=12), {"channels": 1, "depth": 16}),
        (tiff(np.ones((12, 10, 5), np.uint8)), {"channels": 5}),
        (png16(np.ones((12, 10, 1), np.uint16)), {}),
    ],
)
def test_the_keys_of_images_that_are_no_pictures_follow_from_their_headers(content, form, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for index in range(4):
            (tmp_path / name / f"{index}").write_bytes(content)
    found = survey(tmp_path)
    assert (found.form, found.one_size) == (form, (12, 10))
    note = "8 images of 16 bits become 8: prepare.depth: 16 keeps all, and prepare.channels: 1 one channel"
    assert (note in found.odd) == content.startswith(b"\x89PNG")
