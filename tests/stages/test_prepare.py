"""Stage prepare: which image lands where, that it repeats to the byte, and that nothing is lost."""

import io
import json
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from visionpipe.data.config import PrepareConfig
from visionpipe.data.decode import decode_image
from visionpipe.data.frame import frame
from visionpipe.data.headers import PADDING
from visionpipe.data.prepared import CHUNK_BYTES, PREPARED, SPLITS, channel_statistics, open_prepared
from visionpipe.data.understood import class_table, left_out_lines
from visionpipe.errors import DataError
from visionpipe.project.params import Params
from visionpipe.stages.prepare import prepare


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def picture(seed, height=9, width=12):
    """A PNG file unlike that of any other seed."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def write_images(counts, root="images", first_seed=0):
    """Writes `counts`, folder → number of images, below `root`."""
    seed = first_seed
    for folder, count in counts.items():
        (Path(root) / folder).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            (Path(root) / folder / f"{index:03d}.png").write_bytes(picture(seed))
            seed += 1
    return Path(root)


def write_zip(root, path="images.zip", prefix=""):
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(root.rglob("*"), reverse=True):
            archive.write(file, f"{prefix}{file.relative_to(root)}")
    return path


def params_for(path="images", source="folder", seed=0, threads=None, **prepare_options):
    config = PrepareConfig(source, str(path), **({"size": (8, 8)} | prepare_options))
    return Params(config, models={}, seed=seed, threads=threads)


def run(path="images", **options):
    prepare(params_for(path, **options))
    return open_prepared(PREPARED)


def folder_bytes(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def split_of_picture(prepared):
    """The pixels of every image → its split."""
    return {image.tobytes(): split for split in SPLITS for image in prepared.images(split)}


@pytest.mark.parametrize(
    "framing",
    [
        {},
        {"interpolation": "bilinear", "crop_ratio": 0.7},
        {"framing": "pad", "pad_color": (9, 8, 7)},
        {"framing": "stretch"},
    ],
)
def test_what_is_prepared_is_what_serving_sees(framing):
    root = write_images(
        {f"{split}/{name}": 4 for split in ("train", "val", "test") for name in ("cat", "dog")}
    )
    prepared = run(size=(6, 5), **framing)
    defaults = {"interpolation": "bicubic", "crop_ratio": 1.0, "framing": "crop", "pad_color": PADDING}
    assert prepared.framing == {"size": (6, 5)} | defaults | framing
    for split in SPLITS:
        files, labels, images = prepared.files(split), prepared.labels(split), prepared.images(split)
        assert len(files) == len(labels) == len(images) == 8
        assert (images.dtype, images.shape[1:], labels.dtype) == (np.uint8, (6, 5, 3), np.int32)
        for file, label, image in zip(files, labels, images, strict=True):
            np.testing.assert_array_equal(
                image, frame(decode_image((root / file).read_bytes()), (6, 5), **framing)
            )
            assert prepared.classes[label] == Path(file).parent.name


def test_splits_of_the_source_are_left_as_they_are():
    write_images({"train/a": 5, "train/b": 6, "validation/a": 2, "validation/b": 1, "test/a": 1, "test/b": 3})
    assert run().manifest["counts"] == {
        "train": {"a": 5, "b": 6},
        "validation": {"a": 2, "b": 1},
        "test": {"a": 1, "b": 3},
    }


def test_a_missing_validation_split_is_drawn_from_train_class_by_class():
    write_images({"train/a": 20, "train/b": 10, "test/a": 3, "test/b": 3})
    assert run(validation_fraction=0.3).manifest["counts"] == {
        "train": {"a": 14, "b": 7},
        "validation": {"a": 6, "b": 3},
        "test": {"a": 3, "b": 3},
    }


def test_without_splits_test_is_drawn_first_and_validation_from_the_rest():
    write_images({"a": 20, "b": 10})
    assert run(test_fraction=0.2, validation_fraction=0.25).manifest["counts"] == {
        "train": {"a": 12, "b": 6},
        "validation": {"a": 4, "b": 2},
        "test": {"a": 4, "b": 2},
    }


@pytest.mark.parametrize(
    ("images", "train", "validation", "test"),
    [(1, 1, 0, 0), (2, 1, 1, 0), (3, 1, 1, 1), (4, 2, 1, 1), (5, 3, 1, 1)],
)
def test_three_images_of_a_class_are_enough_for_all_splits(images, train, validation, test):
    write_images({"small": images, "large": 9})
    counts = run().manifest["counts"]
    assert [counts[split]["small"] for split in SPLITS] == [train, validation, test]


def test_the_draw_gives_every_image_to_exactly_one_split():
    root = write_images({"a": 17, "b": 23})
    prepared = run()
    drawn = [file for split in SPLITS for file in prepared.files(split)]
    assert sorted(drawn) == sorted(str(path.relative_to(root)) for path in root.rglob("*.png"))


def test_the_draw_depends_on_the_seed_and_not_on_names_or_size_or_threads():
    root = write_images({"a": 20, "b": 20})
    drawn = split_of_picture(run(size=(9, 12)))
    assert split_of_picture(run(size=(9, 12), seed=1)) != drawn
    for path in root.rglob("*.png"):
        path.rename(path.with_name(f"{999 - int(path.stem)}.png"))
    assert split_of_picture(run(size=(9, 12), threads=1)) == drawn
    other_size = {
        frame(np.frombuffer(p, np.uint8).reshape(9, 12, 3), (8, 8)).tobytes(): s for p, s in drawn.items()
    }
    assert split_of_picture(run(size=(8, 8))) == other_size


def test_an_added_image_moves_few_others():
    write_images({"a": 50, "b": 50})
    before = split_of_picture(run())
    write_images({"a/more": 1}, first_seed=1000)
    after = split_of_picture(run())
    assert sum(after[image] != split for image, split in before.items()) <= 3


def test_copies_of_a_picture_are_drawn_together():
    root = write_images({"a": 20, "b": 20})
    for path in list(root.rglob("*.png")):
        shutil.copy(path, path.with_name(f"copy-{path.name}"))
    assert run().manifest["warnings"] == []


def test_two_runs_write_the_same_bytes_wherever_and_whenever(tmp_path, monkeypatch):
    write_images({"a": 9, "b": 9})
    Path("images/a/broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    run()
    first = folder_bytes(PREPARED)
    shutil.copytree("images", tmp_path / "elsewhere/images")
    monkeypatch.chdir(tmp_path / "elsewhere")
    run(threads=3)
    assert folder_bytes(PREPARED) == first
    assert not any(str(tmp_path).encode() in content for content in first.values())


def test_the_same_files_in_a_zip_or_a_folder_are_the_same_data():
    root = write_images({"a": 9, "b": 9})
    from_folder = run().manifest["content_sha256"]
    assert run(write_zip(root), source="zip").manifest["content_sha256"] == from_folder
    wrapped = write_zip(root, "wrapped.zip", prefix="my images/")
    assert run(wrapped, source="zip").manifest["content_sha256"] == from_folder


def test_other_pixels_classes_or_sizes_are_other_data():
    root = write_images({"a": 9, "b": 9})
    names = {run().manifest["content_sha256"], run(size=(8, 9)).manifest["content_sha256"]}
    (root / "b").rename(root / "c")
    names.add(run().manifest["content_sha256"])
    (root / "a/000.png").write_bytes(picture(999))
    names.add(run().manifest["content_sha256"])
    assert len(names) == 4


def test_every_file_found_is_either_kept_or_quarantined_with_a_reason():
    root = write_images({"a": 9, "b": 9})
    odd = {
        "a/notes.txt": b"text",
        "a/cut.png": picture(0)[:100],
        "b/.hidden.png": picture(1),
        "README": b"text",
        "b/empty.jpg": b"",
    }
    for name, content in odd.items():
        (root / name).write_bytes(content)
    manifest = run().manifest
    quarantined = {row["path"]: row["reason"] for row in manifest["quarantined"]}
    assert set(quarantined) == set(odd)
    assert all(quarantined.values())
    assert manifest["kept"] == 18 == sum(sum(counts.values()) for counts in manifest["counts"].values())
    assert (
        manifest["kept"] + len(quarantined)
        == manifest["found"]
        == len([p for p in root.rglob("*") if p.is_file()])
    )


def test_the_channel_statistics_are_those_of_the_training_split():
    write_images({"a": 9, "b": 9})
    prepared = run()
    pixels = prepared.images("train").reshape(-1, 3).astype(np.float64)
    np.testing.assert_allclose(prepared.manifest["channel_mean"], pixels.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(prepared.manifest["channel_std"], pixels.std(axis=0), rtol=1e-12)


def test_the_channel_statistics_of_many_chunks_are_those_of_the_whole():
    images = np.random.default_rng(0).integers(0, 256, (50, 500, 500, 3), dtype=np.uint8)
    assert images.nbytes > 4 * CHUNK_BYTES
    mean, std = channel_statistics(images, list(range(0, 50, 2)))
    np.testing.assert_allclose(mean, images[::2].mean(axis=(0, 1, 2), dtype=np.float64), rtol=1e-12)
    np.testing.assert_allclose(std, images[::2].std(axis=(0, 1, 2), dtype=np.float64), rtol=1e-9)


def no_images():
    Path("images").mkdir()


def only_text():
    write_images({"a": 0, "b": 0})
    Path("images/a/x.png").write_text("text")


def one_class_broken():
    write_images({"a": 5, "b": 5, "c": 0})
    Path("images/c/x.png").write_text("text")


def one_class_of_heic():
    write_images({"a": 5, "b": 5, "c": 0})
    for index in range(3):
        Path(f"images/c/{index}.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(20))


def only_links():
    write_images({"a": 2, "b": 2}, "elsewhere")
    Path("images").mkdir()
    for name in ("a", "b"):
        Path("images", name).symlink_to(Path("elsewhere", name).absolute())


def empty_validation_folder():
    write_images({"train/a": 5, "train/b": 5, "val/a": 0})


ERRORS = {
    "nothing there": (lambda: None, "prepare.path: images does not exist"),
    "an empty folder": (no_images, "images holds no class: expected one folder of images for each class"),
    "one class": (lambda: write_images({"a": 5}), "images holds only the class 'a'"),
    "no image": (only_text, "the only file is not a usable image, 'a/x.png': not an image"),
    "no file": (lambda: write_images({"a": 0, "b": 0}), "there is no file in the class folders"),
    "a class without images": (
        lambda: write_images({"a": 5, "b": 5, "c": 0}),
        "class 'c' has no usable image in train",
    ),
    "a class of bad images": (
        one_class_broken,
        "class 'c' has no usable image in train: repair its files or remove it; 1 file cannot be used, 'c/x.png': not",
    ),
    "a class of HEIC": (
        one_class_of_heic,
        "the first, 'c/0.heic': HEIC is not an image in one of the formats",
    ),
    "classes that are links": (
        only_links,
        "images holds no class: expected one folder of images for each class; folder 'a' with 2 images is left out: "
        "symbolic link that leaves the folder; to use it, set prepare.follow_links: true",
    ),
    "a class of test only": (
        lambda: write_images({"train/a": 5, "train/b": 5, "test/zebra": 2}),
        "class 'zebra' has no usable image in train, only in test",
    ),
    "too few for a split": (
        lambda: write_images({"a": 1, "b": 1}),
        "the validation split is empty: too few images",
    ),
    "splits without classes": (
        lambda: write_images({"train": 5, "test": 5}),
        "the folders 'test', 'train' are named like splits, but 'train' holds no folders for classes",
    ),
    "an empty split": (
        empty_validation_folder,
        "the validation split is empty: its folder has no usable image",
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_data_that_nothing_can_be_learned_from_are_one_clear_line(case):
    make, message = ERRORS[case]
    make()
    with pytest.raises(DataError) as caught:
        run()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not PREPARED.exists()
    if case != "nothing there":
        refused = json.loads(Path(".visionpipe/refused-manifest.json").read_text())
        assert (
            str(caught.value)
            == f"{refused['error']}; all files and reasons: .visionpipe/refused-manifest.json"
        )


def test_the_manifest_of_refused_data_has_every_file_and_goes_when_they_are_repaired():
    write_images({"a": 5, "b": 0})
    for index in range(3):
        Path(f"images/b/{index}.png").write_text("text")
    refused = Path(".visionpipe/refused-manifest.json")
    with pytest.raises(DataError):
        run()
    found = json.loads(refused.read_text())
    assert found["usable"] == {"a": 5, "b": 0}
    assert [row["path"] for row in found["quarantined"]] == ["b/0.png", "b/1.png", "b/2.png"]
    write_images({"b": 5}, first_seed=100)
    run()
    assert not refused.exists()


def test_a_picture_in_two_classes_is_a_warning_with_an_example():
    root = write_images({"a": 9, "b": 9, "c": 9})
    for name, target in (("000", "b"), ("001", "b"), ("002", "c")):
        Image.open(root / f"a/{name}.png").save(root / f"{target}/copy-{name}.bmp")
    (warning,) = (text for text in run().manifest["warnings"] if "classes" in text)
    assert warning == (
        "pictures that are in several classes: 3; 2 of them in 'a' and 'b', such as 'a/000.png' and 'b/copy-000.bmp'"
    )


def test_of_many_classes_the_most_and_the_least_frequent_are_shown():
    names = [f"c{index:02d}" for index in range(31)]
    counts = {
        "train": {name: index for index, name in enumerate(names)},
        "validation": dict.fromkeys(names, 1),
    }
    head, *lines = class_table(counts)
    assert head == "  class  train  validation"
    assert len(lines) == 11
    assert [line.split()[0] for line in lines[:5]] == ["c30", "c29", "c28", "c27", "c26"]
    assert lines[5] == "  … 21 more …"
    assert lines[-1] == "  c00        0           1"
    short = {split: dict(list(of_class.items())[:30]) for split, of_class in counts.items()}
    assert len(list(class_table(short))) == 31
    wide = {"train": {"猫": 3, "dog": 12}}
    assert list(class_table(wide)) == ["  class  train", "  猫         3", "  dog       12"]


def test_what_is_left_out_has_a_line_for_each_reason_and_images_before_other_files():
    def row(path, reason, **more):
        return {"path": path, "reason": reason} | more

    found = left_out_lines(
        [
            *(row(f"__MACOSX/a/._{index}.png", "hidden or system file") for index in range(7)),
            *(row(f"a/{index}.txt", "not an image") for index in range(5)),
            row("a/x.jpg", "not an image"),
            row("a/y.png", "9000 × 9000 pixels, more than 50,000,000 in all"),
            row("a/z.png", "8000 × 9000 pixels, more than 50,000,000 in all"),
            row("b", "symbolic link that leaves the folder", images=1),
            row("d/" + "x" * 500, "not in a class folder"),
        ]
    )
    assert [line[:120] for line in found] == [
        "1 folder with 1 image, 'b': symbolic link that leaves the folder",
        "2 files, such as 'a/y.png': 9000 × 9000 pixels, more than 50,000,000 in all",
        "1 file, 'a/x.jpg': not an image",
        "5 files, such as 'a/0.txt': not an image",
        f"1 file, 'd/{'x' * 28}…{'x' * 30}': not in a class folder",
        "7 hidden or system files, such as '__MACOSX/a/._0.png'",
    ]


def test_strong_imbalance_is_a_warning():
    write_images({"a": 60, "b": 6})
    assert run().manifest["warnings"] == []
    write_images({"a/more": 30}, first_seed=1000)
    (warning,) = run().manifest["warnings"]
    assert warning == "strong imbalance: 58 training images of 'a', 4 of 'b'"


def test_a_picture_in_two_splits_is_a_warning_even_in_another_format():
    root = write_images(
        {"train/a": 5, "train/b": 5, "val/a": 3, "val/b": 3, "test/a": 3, "test/b": 3}, "images"
    )
    for name in ("000", "001"):
        Image.open(root / f"train/a/{name}.png").save(root / f"test/b/copy-{name}.bmp")
    warning, _ = run().manifest["warnings"]  # the other one says that they have two labels
    assert warning == (
        "pictures that are in both train and test: 2, such as 'train/a/000.png' and 'test/b/copy-000.bmp'"
    )


def test_a_class_missing_from_a_split_is_a_warning():
    write_images({"a": 9, "b": 1})
    assert run().manifest["warnings"] == [
        "classes without a validation image: 1, such as 'b'",
        "classes without a test image: 1, such as 'b'",
    ]


def test_a_class_without_a_group_in_a_split_is_a_warning_that_says_what_helps():
    write_images({f"a/g{index}": 2 for index in range(12)} | {"b/g23": 3})
    assert run(group=r"(g\d+)/").manifest["warnings"] == [
        f"classes without a {split} image: 1, such as 'b'; whole groups are drawn: another seed may draw others"
        for split in ("validation", "test")
    ]


def test_the_summary_names_numbers_reasons_and_warnings_and_a_pipe_sees_no_progress_bar(capfd):
    root = write_images({"a": 9, "b": 1})
    for index in range(7):
        (root / f"a/x{index}.txt").write_text("text")
    run()
    printed = capfd.readouterr()
    assert printed.err == ""
    lines = printed.out.splitlines()
    assert (
        lines[0] == "prepared 10 of 17 files: 7 train, 1 validation, 2 test images, 2 classes, 8 × 8 pixels"
    )
    assert lines[1:7] == [
        "  class  train  validation  test",
        "  a          6           1     2",
        "  b          1           0     0",
        "left out, see data/prepared/manifest.json:",
        "  7 files, such as 'a/x0.txt': not an image in one of the formats JPEG, PNG, GIF, BMP, TIFF, WEBP, PPM",
        "WARNING: classes without a validation image: 1, such as 'b'",
    ]


def test_prepared_images_are_mapped_read_only():
    write_images({"a": 5, "b": 5})
    images = run().images("train")
    assert isinstance(images, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        images[0] = 0


def test_unprepared_data_say_what_to_run():
    with pytest.raises(DataError, match=r"data/prepared/manifest\.json is missing: run dvc repro"):
        open_prepared(PREPARED)


def test_every_damaged_or_missing_file_is_noticed():
    write_images({"a": 5, "b": 5})
    prepared = run()
    good = folder_bytes(PREPARED)
    for name, content in good.items():
        if name == "manifest.json":
            continue
        (PREPARED / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(DataError, match=f"{name} is damaged: run dvc repro --force prepare"):
            open_prepared(PREPARED)
        assert open_prepared(PREPARED, verify=False).manifest == prepared.manifest
        (PREPARED / name).unlink()
        with pytest.raises(DataError, match=f"{name} is missing: run dvc repro --force prepare"):
            open_prepared(PREPARED)
        (PREPARED / name).write_bytes(content)
    assert open_prepared(PREPARED).manifest == prepared.manifest


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "null", '{"sha256": {}}'])
def test_a_damaged_manifest_is_noticed(text):
    write_images({"a": 5, "b": 5})
    run()
    (PREPARED / "manifest.json").write_text(text)
    with pytest.raises(DataError, match=r"manifest.json is damaged: run dvc repro --force prepare"):
        open_prepared(PREPARED)


def test_a_manifest_with_other_classes_is_noticed():
    write_images({"a": 5, "b": 5})
    manifest = run().manifest | {"classes": ["b", "a"]}
    (PREPARED / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match=r"manifest.json is damaged"):
        open_prepared(PREPARED)


def test_a_failed_run_leaves_the_previous_data_alone():
    root = write_images({"a": 5, "b": 5})
    run()
    before = folder_bytes(PREPARED)
    for path in (root / "b").iterdir():
        path.write_bytes(b"damaged")
    with pytest.raises(DataError):
        run()
    assert folder_bytes(PREPARED) == before
    assert [path.name for path in PREPARED.parent.iterdir()] == ["prepared"]


def python(program, *arguments):
    return [sys.executable, "-c", program, *map(str, arguments)]


PREPARE = """
import sys
from visionpipe.project.params import Params
from visionpipe.data.config import PrepareConfig
from visionpipe.stages.prepare import prepare
params = Params(PrepareConfig("folder", sys.argv[1], size=(int(sys.argv[2]), int(sys.argv[2]))), models={})
"""


def test_a_killed_run_leaves_the_previous_data_alone_and_the_next_run_cleans_up(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    write_images({"a": 5, "b": 5})
    before = folder_bytes(run().folder)
    write_images({"a": 300, "b": 300})
    process = subprocess.Popen(python(PREPARE + "prepare(params)", "images", 512))
    while not any(file.stat().st_size for file in Path(".visionpipe").glob(".decoded.*.tmp/pixels")):
        assert process.poll() is None, "prepared everything before it could be killed"
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert folder_bytes(PREPARED) == before
    assert run().manifest["kept"] == 600
    assert [path.name for path in PREPARED.parent.iterdir()] == ["prepared"]
    assert [path.name for path in Path(".visionpipe").iterdir()] == ["decoded"]


PEAK_ANONYMOUS_MEMORY = (
    PREPARE
    + """
import re, threading
from pathlib import Path

peak, done = 0, threading.Event()

def watch():
    global peak
    while not done.wait(0.005):
        peak = max(peak, int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]))

watcher = threading.Thread(target=watch)
watcher.start()
prepare(params)
done.set()
watcher.join()
print(peak)
"""
)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_does_not_grow_with_the_number_of_images(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    peaks = {}
    for count in (200, 4000):
        write_images({"a": count // 2, "b": count // 2}, f"images-{count}")
        command = python(PEAK_ANONYMOUS_MEMORY, f"images-{count}", 160)
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        peaks[count] = int(output.splitlines()[-1]) / 1024
    pixels = 3800 * 160 * 160 * 3 / 2**20  # 278 MiB more of them
    assert peaks[4000] - peaks[200] < pixels / 10
