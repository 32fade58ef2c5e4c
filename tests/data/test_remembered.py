"""What a prepare remembers: only new files are decoded, the data stay the same, and damage is never believed."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from visionpipe.data import decoding, remembered
from visionpipe.data.config import PrepareConfig
from visionpipe.data.prepared import PREPARED
from visionpipe.errors import DataError
from visionpipe.project.params import Params
from visionpipe.stages.prepare import prepare

REMEMBERED = Path(".visionpipe/decoded")


@pytest.fixture(autouse=True)
def _images(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path(".dvc").mkdir()
    for number in range(40):
        write(number)


def write(number, kind="RGB"):
    """Writes a picture unlike that of any other number, in one of two classes; every third is larger than SMALL."""
    path = Path("images", ("rose", "tulip")[number % 2], f"{number}.png")
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (90, 70, 3) if number % 3 == 0 else (20, 30, 3)
    pixels = np.random.default_rng(number).integers(0, 256, shape, np.uint8)
    match kind:
        case "RGB":
            Image.fromarray(pixels).save(path, compress_level=0)
        case "I":
            Image.fromarray(pixels[..., 0].astype(np.int32) * 1000).save(path.with_suffix(".tif"))
        case "F":
            Image.fromarray(pixels[..., 0] * np.float32(1.7)).save(path.with_suffix(".tif"))
        case "I;16":
            Image.fromarray(pixels[..., 0].astype(np.uint16) * 8).save(path)
    return path


def run(**options):
    """Prepares the images; returns the content of all prepared files."""
    prepare(Params(PrepareConfig("folder", "images", **{"size": (8, 8)} | options), models={}, seed=0))
    return {path.name: path.read_bytes() for path in PREPARED.iterdir()}


def anew(**options):
    """Returns what a prepare makes that remembers nothing."""
    shutil.rmtree(REMEMBERED)
    return run(**options)


@pytest.fixture
def decoded(monkeypatch):
    """Counts the files that are decoded; the decoder itself is the real one."""
    counts, real = [], decoding.decode_picture
    monkeypatch.setattr(decoding, "decode_picture", lambda *both: counts.append(1) or real(*both))

    def since():
        count = len(counts)
        counts.clear()
        return count

    return since


def test_only_new_and_changed_files_are_decoded_and_the_data_are_those_of_a_first_run(decoded):
    for number, kind in ((40, "I"), (41, "F"), (42, "I;16")):
        write(number, kind)
    first = run()
    assert decoded() == 43
    assert b"are stretched" in first["manifest.json"] or b"is stretched" in first["manifest.json"]
    assert run() == first
    assert decoded() == 0
    write(43)
    write(44, "I")
    write(46, "F")
    Path("images/tulip/1.png").rename("images/rose/moved.png")
    Path("images/tulip/3.png").unlink()
    shutil.copy(write(48), "images/rose/0.png")
    grown = run()
    assert decoded() == 5  # the picture that is there twice, twice
    assert anew() == grown
    assert run() == grown


def test_a_file_with_other_bytes_but_the_same_size_and_time_is_decoded_again(decoded):
    run()
    path = Path("images/rose/2.png")
    before = path.stat()
    content = Path("images/rose/4.png").read_bytes()
    assert len(content) == before.st_size
    with path.open("r+b") as file:
        file.write(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    decoded()
    changed = run()
    assert decoded() == 0  # the same picture was there under another name
    assert changed == anew()
    content = bytearray(content)
    content[-100] ^= 1  # a checksum no longer fits
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    damaged = run()
    assert b"rose/2.png" in damaged["manifest.json"]
    assert damaged == anew()


@pytest.mark.parametrize(
    "options",
    [
        {"size": (9, 8)},
        {"size": (16, 4)},  # as many bytes
        {"interpolation": "nearest"},
        {"crop_ratio": 0.9},
        {"framing": "pad"},
        {"framing": "pad", "pad_color": (1, 2, 3)},
        {"levels": (0, 100)},
        {"reduced_decode": True},
        {"channels": 1},
        {"depth": 16},
    ],
    ids=str,
)
def test_another_way_to_decode_or_resize_remembers_nothing(options, decoded):
    run(framing="pad") if "pad_color" in options else run()
    decoded()
    other = run(**options)
    assert decoded() == 40
    assert run(**options) == other
    assert decoded() == 0
    assert anew(**options) == other


def test_options_that_change_no_pixels_remember_all(decoded):
    run()
    decoded()
    other = run(folds=2, duplicates="drop", validation_fraction=0.3)
    assert decoded() == 0
    assert anew(folds=2, duplicates="drop", validation_fraction=0.3) == other


def test_another_version_of_a_library_or_of_the_code_remembers_nothing(decoded, monkeypatch, tmp_path):
    run()
    decoded()
    with monkeypatch.context() as patch:
        patch.setattr(remembered.metadata, "version", lambda name: "0.0")
        run()
    assert decoded() == 40
    code = tmp_path / "code"
    code.mkdir()
    (code / "decode.py").write_text("something = 1")
    with monkeypatch.context() as patch:
        patch.setattr(remembered, "__file__", str(code / "remembered.py"))
        run()
    assert decoded() == 40


ROW = remembered.INDEX.itemsize


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("pixels", 0),
        ("pixels", 192 * 40 - 1),
        *(("index", ROW * 7 + field) for field in (3, 40, 70, 100, 130, 200)),
    ],
)
def test_a_damaged_row_is_decoded_again(name, place, decoded):
    first = run()
    content = bytearray((REMEMBERED / name).read_bytes())
    content[place] ^= 1
    (REMEMBERED / name).write_bytes(content)
    decoded()
    assert run() == first
    assert decoded() == 1
    assert run() == first
    assert decoded() == 0


@pytest.mark.parametrize(
    ("name", "length", "again"),
    [("index", 0, 40), ("index", 100, 40), ("index", ROW * 30 + 5, 10), ("pixels", 192 * 30 + 5, 10)],
)
def test_a_truncated_file_serves_as_far_as_it_goes(name, length, again, decoded):
    first = run()
    os.truncate(REMEMBERED / name, length)
    decoded()
    assert run() == first
    assert decoded() == again


@pytest.mark.parametrize("damage", ["file", "empty folder", "folders", "other content", "link to nowhere"])
def test_what_is_no_memory_is_replaced(damage, decoded):
    first = run()
    if damage == "other content":
        for name in remembered.FILES:
            (REMEMBERED / name).write_bytes(bytes(10_000))
    else:
        shutil.rmtree(REMEMBERED)
    match damage:
        case "file":
            REMEMBERED.write_bytes(b"x")
        case "empty folder":
            REMEMBERED.mkdir()
        case "folders":
            for name in remembered.FILES:
                (REMEMBERED / name).mkdir(parents=True)
        case "link to nowhere":
            REMEMBERED.symlink_to("nowhere")
    assert run() == first
    decoded()
    assert run() == first
    assert decoded() == 0


def test_refused_data_are_remembered(decoded):
    for number in range(1, 40, 2):
        Path(f"images/tulip/{number}.png").write_bytes(b"no picture")
    with pytest.raises(DataError):
        run()
    assert decoded() == 40
    for number in range(1, 40, 2):
        write(number)
    run()
    assert decoded() == 20


def test_nothing_is_left_where_the_disk_has_too_little_room(monkeypatch):
    first = run()
    monkeypatch.setattr(remembered, "ROOM", 10**12)
    assert run() == first
    assert list(Path(".visionpipe").iterdir()) == []


def test_pictures_of_a_killed_run_and_of_the_run_before_are_taken(decoded, monkeypatch):
    first = run()
    monkeypatch.setattr(decoding, "DECODED_AHEAD", 0)
    program = """
import os, signal
import tests.data.test_remembered as test
from visionpipe.data import decoding, remembered

real, count = decoding.decode_picture, []
decoding.DECODED_AHEAD = remembered.CHUNK = 2

def stopped(*both):
    count.append(1)
    if len(count) == 8:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*both)

decoding.decode_picture = stopped
test.run()
"""
    for number in range(50, 66):
        write(number)
    root = str(Path(__file__).parents[2])
    environment = os.environ | {"PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
    killed = subprocess.run([sys.executable, "-c", program], env=environment, check=False)
    assert killed.returncode == -signal.SIGKILL
    decoded()
    grown = run()
    assert 8 < decoded() < 16
    assert [path.name for path in Path(".visionpipe").iterdir()] == ["decoded"]
    assert anew() == grown != first


def test_two_runs_at_once_do_not_disturb_each_other():
    config = PrepareConfig("folder", "images", size=(8, 8))
    with remembered.remembering(REMEMBERED, config) as memory:
        for number in range(3):
            data = write(number).read_bytes()
            memory.write(memory.key(data), decoding.decode_picture(data, config))
        ours, _ = memory.rows()
        program = "import tests.data.test_remembered as test; test.run()"
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
        subprocess.run([sys.executable, "-c", program], env=environment, check=True, capture_output=True)
    expected = [decoding.decode_picture(write(number).read_bytes(), config).pixels for number in range(3)]
    np.testing.assert_array_equal(ours, expected)
    assert [path.name for path in Path(".visionpipe").iterdir()] == ["decoded"]
