"""Sources: every file found becomes a record or a rejection with a reason, in an order that repeats."""

import gzip
import io
import os
import shutil
import struct
import subprocess
import sys
import tracemalloc
import unicodedata
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from visionpipe.data.config import PrepareConfig
from visionpipe.data.decode import decode_image
from visionpipe.data.listing import Record, Rejected
from visionpipe.data.prepared import PREPARED, open_prepared
from visionpipe.data.sources import SOURCES, list_folder, list_idx, list_zip
from visionpipe.data.walk import MAX_FILE_BYTES
from visionpipe.errors import DataError, ImageError
from visionpipe.project.params import Params
from visionpipe.stages.prepare import prepare


def write_files(root, *paths):
    for path in paths:
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(f"bytes of {path}".encode())
    return root


def write_zip(path, *names, contents=b"bytes"):
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, contents)
    return path


def folder_listing(path):
    return list_folder(PrepareConfig("folder", str(path)))


def zip_listing(path):
    return list_zip(PrepareConfig("zip", str(path)))


def records(listing):
    return [(e.split, e.class_name, e.file) for e in listing.entries if isinstance(e, Record)]


def rejections(listing):
    return {e.file: e.reason for e in listing.entries if isinstance(e, Rejected)}


LAYOUTS = {
    "classes at the top": (
        ["cat/1.png", "dog/2.png"],
        [(None, "cat", "cat/1.png"), (None, "dog", "dog/2.png")],
    ),
    "splits at the top": (
        ["train/cat/1.png", "test/cat/2.png", "val/cat/3.png"],
        [
            ("test", "cat", "test/cat/2.png"),
            ("train", "cat", "train/cat/1.png"),
            ("validation", "cat", "val/cat/3.png"),
        ],
    ),
    "splits in capitals": (
        ["Training/cat/1.png", "VALIDATION/cat/2.png"],
        [("train", "cat", "Training/cat/1.png"), ("validation", "cat", "VALIDATION/cat/2.png")],
    ),
    "a folder around classes": (
        ["animals/cat/1.png", "animals/dog/2.png"],
        [(None, "cat", "animals/cat/1.png"), (None, "dog", "animals/dog/2.png")],
    ),
    "a folder around splits": (
        ["animals/train/cat/1.png", "animals/test/cat/2.png"],
        [("test", "cat", "animals/test/cat/2.png"), ("train", "cat", "animals/train/cat/1.png")],
    ),
    "images deep below their class": (
        ["cat/a/1.png", "cat/a/b/2.png", "dog/3.png"],
        [(None, "cat", "cat/a/1.png"), (None, "cat", "cat/a/b/2.png"), (None, "dog", "dog/3.png")],
    ),
    "one class only": (["cat/1.png"], [(None, "cat", "cat/1.png")]),
    "one training class only": (["train/cat/1.png"], [("train", "cat", "train/cat/1.png")]),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_splits_and_classes_are_read_off_the_folders(layout, tmp_path):
    paths, expected = LAYOUTS[layout]
    assert records(folder_listing(write_files(tmp_path / "set", *paths))) == expected
    assert records(zip_listing(write_zip(tmp_path / "set.zip", *reversed(paths)))) == expected


def test_every_source_is_named_in_the_configuration():
    assert set(SOURCES) == set(PrepareConfig.__annotations__["source"].__args__)


def test_bytes_are_read_on_demand(tmp_path):
    root = write_files(tmp_path / "set", "cat/1.png", "dog/2.png")
    assert [entry.read() for entry in folder_listing(root).entries] == [
        b"bytes of cat/1.png",
        b"bytes of dog/2.png",
    ]
    path = write_zip(tmp_path / "set.zip", "cat/1.png", contents=b"zipped")
    assert [entry.read() for entry in zip_listing(path).entries] == [b"zipped"]


def test_empty_class_folders_are_classes_too(tmp_path):
    root = write_files(tmp_path / "set", "cat/1.png")
    (root / "dog").mkdir()
    assert folder_listing(root).classes == ("cat", "dog")
    assert zip_listing(write_zip(tmp_path / "set.zip", "cat/1.png", "dog/")).classes == ("cat", "dog")


def test_splits_without_a_training_folder_are_an_error(tmp_path):
    with pytest.raises(DataError, match="there are folders test, val, but no folder train"):
        folder_listing(write_files(tmp_path, "test/cat/1.png", "val/cat/2.png"))


def test_files_outside_class_folders_are_rejected(tmp_path):
    flat = folder_listing(write_files(tmp_path / "flat", "README.txt", "cat/1.png", "dog/2.png"))
    assert rejections(flat) == {"README.txt": "not in a class folder"}
    split = folder_listing(
        write_files(tmp_path / "split", "train/cat/1.png", "train/loose.png", "extra/cat/2.png")
    )
    assert rejections(split) == {
        "train/loose.png": "not in a class folder",
        "extra/cat/2.png": "not in a train, validation or test folder",
    }
    assert split.classes == ("cat",)


BY_PRODUCTS = [
    "cat/.DS_Store",
    "cat/Thumbs.db",
    "__MACOSX/cat/._1.png",
    ".git/config",
    "@eaDir/cat/SYNOPHOTO_THUMB_M.jpg",
    "cat/@eaDir/1.png/SYNOFILE_THUMB_S.png",
    "#recycle/cat/9.png",
    "$RECYCLE.BIN/1.png",
    "System Volume Information/x",
    "lost+found/2.png",
    "cat/.ipynb_checkpoints/1-checkpoint.png",
    "cat/.@__thumb/1.png",
    "cat/1.png~",
    "cat/.1.png.swp",
    "cat/2.png.crdownload",
    "cat/3.png.part",
    "images.dvc",
    "cat/Icon\r",
    "cat/desktop.ini",
    "dog/Shortcut.lnk",
    "dog/1.png:Zone.Identifier",
]


def test_hidden_and_system_files_are_rejected_and_make_no_class(tmp_path):
    names = ["cat/1.png", "dog/2.png", *BY_PRODUCTS]
    for listing in (
        folder_listing(write_files(tmp_path / "set", *names)),
        zip_listing(write_zip(tmp_path / "set.zip", *names)),
    ):
        assert listing.classes == ("cat", "dog")
        assert rejections(listing) == dict.fromkeys(BY_PRODUCTS, "hidden or system file")
        assert listing.total == len(names)


def test_unicode_forms_of_a_class_are_one_class_with_a_note(tmp_path):
    composed, decomposed = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    listing = zip_listing(
        write_zip(tmp_path / "set.zip", f"{composed}/1.png", f"{decomposed}/2.png", "tea/3.png")
    )
    assert listing.classes == (composed, "tea")
    assert {name for _, name, _ in records(listing)} == {composed, "tea"}
    assert len(listing.notes) == 1


def test_class_folders_that_differ_in_case_are_one_class_with_a_note(tmp_path):
    listing = zip_listing(
        write_zip(tmp_path / "set.zip", "train/Cat/1.png", "test/cat/2.png", "train/dog/3.png")
    )
    assert listing.classes == ("Cat", "dog")
    (note,) = listing.notes
    assert note.startswith("folders 'Cat', 'cat' are one class, 'Cat': for separate classes")


@pytest.mark.parametrize(
    ("kind", "make", "message"),
    [
        ("zip", None, "does not exist: set it in params.yaml to where the images are, or run dvc pull"),
        ("folder", None, "does not exist: set it in params.yaml to where the images are, or run dvc pull"),
        ("zip", "folder", "is not a file, as prepare.source: zip needs"),
        ("folder", "file", "is not a folder, as prepare.source: folder needs"),
        ("zip", "file", "is not a zip archive, or is damaged"),
    ],
)
def test_a_wrong_path_is_named_with_what_to_do(kind, make, message, tmp_path):
    path = tmp_path / "images"
    if make == "folder":
        path.mkdir()
    elif make == "file":
        path.write_text("no archive")
    with pytest.raises(DataError, match=message) as caught:
        SOURCES[kind](PrepareConfig(kind, str(path)))
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("name", ["../cat/1.png", "cat/../../1.png", "/cat/1.png", "C:/cat/1.png"])
def test_archive_members_that_lead_out_of_it_are_rejected(name, tmp_path):
    listing = zip_listing(write_zip(tmp_path / "set.zip", "cat/0.png", "dog/0.png", name))
    assert list(rejections(listing).values()) == ["path leads out of the archive"]


def test_links_in_an_archive_are_rejected(tmp_path):
    link = zipfile.ZipInfo("cat/link.png")
    link.external_attr = 0o120777 << 16
    path = write_zip(tmp_path / "set.zip", "cat/1.png", link)
    assert rejections(zip_listing(path)) == {"cat/link.png": "symbolic link"}


def patched(path, old, new):
    path.write_bytes(path.read_bytes().replace(old, new))
    return path


def test_encrypted_members_are_rejected(tmp_path):
    path = write_zip(tmp_path / "set.zip", "cat/1.png")
    with zipfile.ZipFile(path) as archive:
        start = archive.start_dir
    data = bytearray(path.read_bytes())
    data[start + 8] |= 1  # general purpose flags of the central directory entry
    path.write_bytes(data)
    assert rejections(zip_listing(path)) == {"cat/1.png": "encrypted"}


def test_a_name_that_appears_twice_in_an_archive_is_used_once(tmp_path):
    path = write_zip(tmp_path / "set.zip", "cat/1.png", "cat/2.png")
    listing = zip_listing(patched(path, b"cat/2.png", b"cat/1.png"))
    assert records(listing) == [(None, "cat", "cat/1.png")]
    assert rejections(listing) == {"cat/1.png": "appears twice in the archive"}


def write_zip_of_bytes(path, names, field=None, system=0):
    """Writes an archive whose names are these bytes and are not declared; `field` makes an extra field of a name."""
    marks = {b"%%%06d" % index + b"x" * (len(raw) - 7): raw for index, raw in enumerate(names)}
    with zipfile.ZipFile(path, "w") as archive:
        for mark, raw in marks.items():
            info = zipfile.ZipInfo(mark.decode())
            info.create_system, info.extra = system, field(raw) if field else b""
            archive.writestr(info, b"bytes")
    content = path.read_bytes()
    for mark, raw in marks.items():
        assert len(mark) == len(raw)
        content = content.replace(mark, raw)
    path.write_bytes(content)
    return path


NAMES = {
    "utf-8": ["café", "tea"],
    "cp850": ["Äpfel", "Möhren", "Birnen"],
    "cp437": ["Äpfel", "Möhren", "Birnen"],
    "cp852": ["Źrebię", "Żaba", "Śliwka"],
    "cp866": ["кошка", "собака", "брак"],
    "cp1251": ["кошка", "собака", "брак"],
    "gbk": ["猫", "路", "狗"],  # the first is also valid UTF-8
    "cp932": ["良品", "不良", "表", "ひび割れ"],  # the second byte of 表 is a backslash
    "cp949": ["고양이", "강아지", "정상"],
    "big5": ["蘋果", "汽車", "正常"],
}


@pytest.mark.parametrize("encoding", NAMES)
def test_names_that_an_archive_does_not_declare_are_read_in_the_one_encoding_that_fits_all(
    encoding, tmp_path
):
    names = NAMES[encoding]
    raw = [f"{name}/{index:05d}.png".encode(encoding) for name in names for index in range(2)]
    listing = zip_listing(write_zip_of_bytes(tmp_path / "set.zip", raw))
    assert listing.classes == tuple(sorted(names))
    assert not rejections(listing)
    if encoding == "utf-8":
        assert listing.notes == ()
    else:
        (note,) = listing.notes
        assert "the archive does not say how its names are encoded" in note
        assert next(name for name in names if not name.isascii()) in note


def unicode_path(name, of):
    field = struct.pack("<BI", 1, zlib.crc32(of)) + name.encode()
    return struct.pack("<HH", 0x7075, len(field)) + field


def test_the_unicode_path_field_of_an_archive_is_obeyed_if_it_is_of_this_name(tmp_path):
    raw = ["Äpfel/00000.png".encode("cp850"), b"Birnen/0000.png"]
    right = write_zip_of_bytes(
        tmp_path / "right.zip", raw, field=lambda name: unicode_path(name.decode("cp850"), name)
    )
    listing = zip_listing(right)
    assert (listing.classes, listing.notes) == (("Birnen", "Äpfel"), ())
    stale = write_zip_of_bytes(
        tmp_path / "stale.zip", raw, field=lambda name: unicode_path("dog/1.png", b"x")
    )
    assert zip_listing(stale).classes == ("Birnen", "Äpfel")


def test_backslashes_of_windows_separate_folders_and_those_of_unix_are_a_part_of_the_name(tmp_path):
    windows = write_zip_of_bytes(
        tmp_path / "windows.zip", [b"cat\\000.png", b"cat\\a\\1.png", b"dog\\001.png"]
    )
    assert {name for _, name, _ in records(zip_listing(windows))} == {"cat", "dog"}
    unix = write_zip_of_bytes(tmp_path / "unix.zip", [b"cat/a\\1.png", b"dog/002.png"], system=3)
    assert [file for *_, file in records(zip_listing(unix))] == ["cat/a\\1.png", "dog/002.png"]
    outside = write_zip_of_bytes(
        tmp_path / "outside.zip", [b"..\\cat\\1.png", b"C:\\dog\\1.png", b"a/1234.png"]
    )
    assert set(rejections(zip_listing(outside)).values()) == {"path leads out of the archive"}


def test_a_class_of_an_archive_of_which_no_file_is_read_is_named(tmp_path):
    path = write_zip(tmp_path / "set.zip", "cat/0.png", "dog/0.png", "/bird/1.png", "/bird/2.png")
    (note,) = zip_listing(path).notes
    assert "folder 'bird' is left out, because no file in it can be read: 2 files" in note


def test_a_path_of_thousands_of_folders_costs_no_more_than_its_length(tmp_path):
    names = ["cat/1.png", "dog/1.png", *(f"cat/{index}/" + "a/" * 30_000 + "x.png" for index in range(4))]
    path = write_zip(tmp_path / "set.zip", *names)
    tracemalloc.start()
    try:
        assert zip_listing(path).total == 6
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 20 * path.stat().st_size


def test_huge_members_are_rejected_unread(tmp_path):
    path = write_zip(tmp_path / "set.zip", "cat/1.png", contents=b"12345")
    size = (5).to_bytes(4, "little") * 2
    patched(path, size, (5).to_bytes(4, "little") + (MAX_FILE_BYTES + 1).to_bytes(4, "little"))
    assert rejections(zip_listing(path)) == {"cat/1.png": "larger than 256 MiB"}


def test_a_damaged_member_is_a_broken_image(tmp_path):
    path = patched(write_zip(tmp_path / "set.zip", "cat/1.png", contents=b"pixels"), b"pixels", b"pixelz")
    (entry,) = zip_listing(path).entries
    with pytest.raises(ImageError, match="damaged in the archive"):
        entry.read()


def test_a_link_within_the_folder_is_followed_and_one_out_of_it_rejected(tmp_path):
    outside = write_files(tmp_path / "outside", "cat/9.png")
    root = write_files(tmp_path / "set", "cat/1.png", "dog/2.png")
    (root / "cat/inside.png").symlink_to(root / "dog/2.png")
    (root / "cat/outside.png").symlink_to(outside / "cat/9.png")
    (root / "cow").symlink_to(outside / "cat")
    listing = folder_listing(root)
    assert [file for _, _, file in records(listing)] == ["cat/1.png", "cat/inside.png", "dog/2.png"]
    assert rejections(listing) == {
        "cat/outside.png": "symbolic link that leaves the folder",
        "cow": "symbolic link that leaves the folder",
    }
    (note,) = listing.notes
    assert note.startswith("folder 'cow' with 1 image is left out: symbolic link that leaves the folder; ")
    followed = list_folder(PrepareConfig("folder", str(root), follow_links=True))
    assert followed.classes == ("cat", "cow", "dog")
    assert not rejections(followed)


def test_folders_that_link_to_each_other_many_times_end(tmp_path):
    for index in range(40):  # 2 ** 40 paths lead to the last one
        folder = write_files(tmp_path / f"set/{index:02d}", "1.png")
        for name in ("a", "b"):
            (folder / name).symlink_to(f"../{index + 1:02d}")
    listing = folder_listing(tmp_path / "set")
    assert listing.total < 40 * 16 * 4
    assert any("symbolic links lead to this folder" in reason for reason in rejections(listing).values())


@pytest.mark.parametrize(
    "target", ["blobs/" + "0" * 40, "annex/objects/Xx/1k/SHA256E-s5--ab.png/SHA256E-s5--ab.png"]
)
def test_links_into_a_store_of_files_by_their_content_are_followed(target, tmp_path):
    write_files(tmp_path, target)
    root = write_files(tmp_path / "set", "cat/1.png", "dog/1.png")
    (root / "cat/2.png").symlink_to(tmp_path / target)
    assert [file for *_, file in records(folder_listing(root))] == ["cat/1.png", "cat/2.png", "dog/1.png"]


@pytest.mark.skipif(os.geteuid() == 0 and not shutil.which("setpriv"), reason="root reads every folder")
def test_a_folder_that_may_not_be_read_is_named(tmp_path):
    root = write_files(tmp_path / "set", "cat/1.png", "dog/1.png", "owl/1.png")
    (root / "owl").chmod(0)
    program = (
        "import sys; from visionpipe.data.config import PrepareConfig; from visionpipe.data.sources import list_folder;"
        "found = list_folder(PrepareConfig('folder', sys.argv[1])); print(found.classes, *found.notes)"
    )
    rights = "-dac_override,-dac_read_search"
    without = ["setpriv", f"--bounding-set={rights}", f"--inh-caps={rights}"] if os.geteuid() == 0 else []
    run = subprocess.run(
        [*without, sys.executable, "-c", program, str(root)],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.stdout.startswith("('cat', 'dog') folder 'owl' is left out: cannot be read: Permission denied")


def test_links_in_a_circle_end(tmp_path):
    root = write_files(tmp_path / "set", "cat/1.png", "dog/2.png")
    (root / "cat/up").symlink_to(root)
    (root / "dog/itself").symlink_to("itself")
    (root / "dog/nowhere").symlink_to("nothing")
    assert rejections(folder_listing(root)) == {
        "cat/up": "symbolic link that leads in a circle",
        "dog/itself": "neither a file nor a folder",
        "dog/nowhere": "neither a file nor a folder",
    }


def test_a_named_pipe_is_rejected_without_waiting_for_it(tmp_path):
    root = write_files(tmp_path / "set", "cat/1.png")
    os.mkfifo(root / "cat/pipe.png")
    assert rejections(folder_listing(root)) == {"cat/pipe.png": "neither a file nor a folder"}


def test_file_names_that_are_not_utf8_are_rejected_readably(tmp_path):
    root = write_files(tmp_path / "set", "cat/1.png")
    Path(os.fsdecode(os.fsencode(root / "cat") + b"/\xff.png")).write_bytes(b"")
    assert rejections(folder_listing(root)) == {"cat/\\xff.png": "file name is not UTF-8"}


def test_a_file_that_vanishes_is_a_broken_image(tmp_path):
    root = write_files(tmp_path / "set", "cat/1.png")
    (entry,) = folder_listing(root).entries
    (root / "cat/1.png").unlink()
    with pytest.raises(ImageError, match="cannot be read: No such file or directory"):
        entry.read()


# Runs in a process of its own: the set is then found by its files alone, as sets of other people are.
BUILD_SHAPES = """
import gzip
import io
import sys

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

class TinyShapes(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {
            "id": tfds.features.Text(),
            "image": tfds.features.Image(shape=(None, None, 3)),
            "label": tfds.features.ClassLabel(names=["square", "disc"]),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, download_manager):
        ranges = {"train": (0, 12), "test": (12, 16), "unlabelled": (16, 18)}
        return {split: self._generate_examples(*indices) for split, indices in ranges.items()}

    def _generate_examples(self, start, stop):
        for index in range(start, stop):
            image = io.BytesIO()
            Image.fromarray(np.full((4, 6, 3), 10 * index, np.uint8)).save(image, "PNG")
            content = b"no image" if index == 3 else image.getvalue()
            label = -1 if index == 15 else index % 2
            yield index, {"id": str(index), "image": io.BytesIO(content), "label": label}

TinyShapes(data_dir=sys.argv[1]).download_and_prepare()
"""


@pytest.fixture(scope="module")
def tiny_shapes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tensorflow_datasets")
    command = [sys.executable, "-c", BUILD_SHAPES, str(folder)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return folder


def test_a_tensorflow_datasets_set_is_found_by_name_with_its_bytes_untouched(tiny_shapes):
    listing = SOURCES["tfds"](PrepareConfig("tfds", str(tiny_shapes), name="tiny_shapes"))
    assert listing.classes == ("square", "disc")
    assert listing.splits == {"train", "test"}
    assert listing.notes == ("tiny_shapes has splits that are not used: unlabelled",)
    entries = list(listing.entries)
    assert listing.total == len(entries) == 16
    assert [entry.reason for entry in entries if isinstance(entry, Rejected)] == ["has no label"]
    found = {(entry.split, entry.class_name, entry.read()) for entry in entries if isinstance(entry, Record)}
    assert len(found) == 15
    for split, class_name, data in found:
        if data == b"no image":
            continue
        index = np.asarray(Image.open(io.BytesIO(data)))[0, 0, 0] // 10
        assert split == ("train" if index < 12 else "test")
        assert class_name == ("square", "disc")[index % 2]


def test_a_tensorflow_datasets_set_keeps_its_order(tiny_shapes):
    config = PrepareConfig("tfds", str(tiny_shapes), name="tiny_shapes")
    once, again = (
        [e.read() for e in SOURCES["tfds"](config).entries if isinstance(e, Record)] for _ in range(2)
    )
    assert once == again


def test_an_unknown_tensorflow_datasets_set_is_one_line(tmp_path):
    with pytest.raises(
        DataError, match=r"^no_such_set is not in .* and cannot be downloaded: .*not found"
    ) as caught:
        SOURCES["tfds"](PrepareConfig("tfds", str(tmp_path), name="no_such_set"))
    assert "\n" not in str(caught.value)


def test_a_tensorflow_datasets_set_is_prepared_and_its_bad_image_quarantined(
    tiny_shapes, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    prepare(Params(PrepareConfig("tfds", str(tiny_shapes), name="tiny_shapes", size=(8, 8)), models={}))
    manifest = open_prepared(PREPARED).manifest
    assert manifest["classes"] == ["square", "disc"]
    assert (manifest["kept"], manifest["found"]) == (14, 16)
    assert sorted(row["reason"].split(",")[0] for row in manifest["quarantined"]) == [
        "has no label",
        "not an image in one of the formats JPEG",
    ]


def write_idx(folder, prefix, images, labels, zipped=False):
    for name, array, kind in (("images-idx3", images, 3), ("labels-idx1", labels, 1)):
        content = np.array([0x800 + kind, *array.shape], ">i4").tobytes() + array.tobytes()
        file = folder / f"{prefix}-{name}-ubyte{'.gz' if zipped else ''}"
        file.write_bytes(gzip.compress(content) if zipped else content)


@pytest.fixture
def idx_folder(tmp_path):
    random = np.random.default_rng(0)
    for prefix, count, zipped in (("train", 30, True), ("t10k", 12, False)):
        images = random.integers(0, 256, (count, 9, 8), np.uint8)
        write_idx(tmp_path, prefix, images, np.arange(count, dtype=np.uint8) % 3, zipped)
    return tmp_path


def test_idx_files_are_images_of_their_splits_pixel_for_pixel(idx_folder):
    listing = list_idx(PrepareConfig("idx", str(idx_folder), size=(9, 8)))
    entries = list(listing.entries)
    assert (listing.classes, listing.total, len(entries)) == (("0", "1", "2"), 42, 42)
    assert [(e.split, e.class_name, e.file) for e in entries[29:31]] == [
        ("train", "2", "train/00029"),
        ("test", "0", "t10k/00000"),
    ]
    stored = np.frombuffer((idx_folder / "t10k-images-idx3-ubyte").read_bytes(), np.uint8, offset=16)
    decoded = np.stack([decode_image(entry.read()) for entry in entries[30:]])
    np.testing.assert_array_equal(decoded, np.repeat(stored.reshape(12, 9, 8)[..., None], 3, -1))
    names = "shoe\nbag\ncoat\n"
    of_windows = ["\r\n".join(names.split("\n")).encode(end) for end in ("utf-8-sig", "utf-16")]
    for content in (names.encode(), b"shoe \nbag\t\ncoat", *of_windows):
        (idx_folder / "classes.txt").write_bytes(content)
        assert list_idx(PrepareConfig("idx", str(idx_folder))).classes == ("shoe", "bag", "coat")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "t10k-labels-idx1-ubyte").unlink(), "has no t10k-labels-idx1-ubyte or"),
        (
            lambda f: (f / "t10k-images-idx3-ubyte").write_bytes(b"\0\0"),
            "t10k-images-idx3-ubyte is not an idx file",
        ),
        (
            lambda f: (f / "train-labels-idx1-ubyte.gz").write_bytes(b"\x1f\x8b\x08"),
            "labels-idx1-ubyte.gz is damaged",
        ),
        (
            lambda f: write_idx(f, "t10k", np.zeros((2, 9, 8), np.uint8), np.zeros(3, np.uint8)),
            "2 t10k images, but 3",
        ),
        (lambda f: (f / "classes.txt").write_text("a\nb\n"), "classes.txt must have 3 lines"),
    ],
)
def test_damaged_idx_files_are_one_line(idx_folder, damage, message):
    damage(idx_folder)
    with pytest.raises(DataError, match=message):
        list_idx(PrepareConfig("idx", str(idx_folder)))


def test_files_that_dvc_has_linked_into_its_cache_are_read_and_other_links_out_of_the_folder_are_not(
    tmp_path,
):
    root = write_files(tmp_path / "images", "cat/1.png", "dog/1.png")
    cached = tmp_path / "cache" / "files" / "md5" / "ab" / ("0" * 30)
    write_files(tmp_path, str(cached.relative_to(tmp_path)), "secret/0.png")
    (root / "cat/2.png").symlink_to(cached)
    (root / "cat/3.png").symlink_to(cached.with_name("1" * 30))
    (root / "dog/2.png").symlink_to(tmp_path / "secret/0.png")
    listing = folder_listing(root)
    assert [file for *_, file in records(listing)] == ["cat/1.png", "cat/2.png", "dog/1.png"]
    (linked,) = (entry for entry in listing.entries if entry.file == "cat/2.png")
    assert linked.read() == cached.read_bytes()
    assert rejections(listing) == {
        "cat/3.png": "not in DVC's cache: run dvc pull",
        "dog/2.png": "symbolic link that leaves the folder",
    }
