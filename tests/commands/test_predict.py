"""`visionpipe predict` in a process of its own: which files it finds, what it writes, and how it goes on."""

import csv
import io
import json
import os
import pickle
import re
import resource
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import orjson
import psutil
import pyarrow.parquet
import pytest
from servers import CHECKOUT, CLASSES, picture

from visionpipe.artifact.classifier import Classifier
from visionpipe.commands.predict import WRITERS, answers, open_journal, predict
from visionpipe.data.config import PrepareConfig
from visionpipe.data.listing import Record
from visionpipe.data.paths import File, find_files, state
from visionpipe.data.sources import SOURCES
from visionpipe.errors import ConfigError, DataError

# A library that another test of the process uses may have imported JAX, which warns of every fork; nothing runs in it.
pytestmark = pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")


@pytest.fixture
def images(tmp_path):
    """Ten images in two folders, one of them broken, and what is no image."""
    for index in range(10):
        path = tmp_path / "images" / ("a" if index < 5 else "b") / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(width=10 + index))
    (tmp_path / "images" / "a" / "broken.jpg").write_bytes(picture("JPEG")[:400])
    (tmp_path / "images" / "b" / "notes.txt").write_text("text")
    (tmp_path / "images" / ".hidden").write_text("x")
    return tmp_path / "images"


@pytest.fixture
def many(tmp_path):
    """Images that take long enough to be interrupted at."""
    folder, data = tmp_path / "many", picture(width=900, height=900)
    folder.mkdir()
    for index in range(200):
        (folder / f"{index:03d}.png").write_bytes(data)
    return folder


def command(artifact, *arguments):
    return [sys.executable, "-m", "visionpipe", "predict", "--model", str(artifact), *map(str, arguments)]


def run(artifact, *arguments, cwd, stdin=""):
    return subprocess.run(
        command(artifact, *arguments),
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(CHECKOUT)},
        input=stdin,
        capture_output=True,
        text=True,
    )


def begin(artifact, *arguments, cwd, most_bytes=resource.RLIM_INFINITY):
    def limits():
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # ignored where the suite runs behind &
        resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, resource.RLIM_INFINITY))

    return psutil.Popen(
        command(artifact, *arguments),
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(CHECKOUT)},
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=limits,
    )


def read(path):
    if path.suffix == ".csv":
        with path.open(newline="") as file:
            return [{k: v or None for k, v in row.items()} for row in csv.DictReader(file)]
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    return pyarrow.parquet.read_table(path).to_pylist()


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_a_folder_gives_a_row_per_file_and_broken_ones_have_a_reason(artifact, images, suffix):
    output = images.parent / f"labels.{suffix}"
    result = run(artifact, "images", "--output", output, "--probabilities", cwd=images.parent)
    assert result.returncode == 1
    assert "2 of 12 files have no label, such as images/a/broken.jpg: damaged" in result.stderr
    rows = {row["file"]: row for row in read(output)}
    assert list(rows) == sorted(rows)
    assert len(rows) == 12
    classifier = Classifier(artifact)
    for name, row in rows.items():
        if row["error"] is not None:
            assert row["label"] is None
            continue
        image = classifier.preprocess((images.parent / name).read_bytes())
        expected = classifier.probabilities(image[None])[0]
        assert row["label"] == CLASSES[expected.argmax()]
        found = [float(row[f"p({label})"]) for label in CLASSES]
        np.testing.assert_allclose(found, expected, atol=1e-6)
        assert float(row["probability"]) == pytest.approx(expected.max(), abs=1e-6)
    assert not output.with_name(f"{output.name}.partial").exists()


def test_globs_zips_single_files_and_lists_on_stdin(artifact, images):
    with zipfile.ZipFile(images.parent / "more.zip", "w") as archive:
        archive.write(images / "a" / "0.png", "inner/0.png")
        archive.writestr("../out.png", picture())
    given = ["images/a/[01].png", "more.zip", "images/b/7.png", "images/b/7.png"]
    expected = [
        "images/a/0.png",
        "images/a/1.png",
        "more.zip/../out.png",
        "more.zip/inner/0.png",
        "images/b/7.png",
    ]
    output = images.parent / "predictions.csv"
    result = run(artifact, *given, cwd=images.parent)
    assert [row["file"] for row in read(output)] == expected
    assert result.returncode == 1
    assert "path leads out of the archive" in result.stderr
    output.unlink()
    result = run(artifact, cwd=images.parent, stdin="images/a/0.png\nimages/b/*.png\n")
    assert result.returncode == 0
    assert "6 files, linear version" in result.stdout
    assert len(read(output)) == 6


LISTS = {
    "CRLF": b"images/a/0.png\r\nimages/b/7.png\r\n",
    "a byte order mark": "images/a/0.png\nimages/b/7.png".encode("utf-8-sig"),
    "PowerShell": "images/a/0.png\r\nimages/b/7.png\r\n".encode("utf-16"),
    "UTF-16 without a mark": "images/a/0.png\r\nimages/b/7.png\r\n".encode("utf-16-le"),
    "quotes, blanks and backslashes": b'"images\\a\\0.png"  \n\n  images/b/7.png \t\n',
    "print0": b"images/a/0.png\0images/b/7.png\0",
}


@pytest.mark.parametrize("kind", LISTS)
def test_a_list_of_any_system_is_read(kind, images, monkeypatch):
    monkeypatch.chdir(images.parent)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(LISTS[kind])))
    assert [file.name for file in find_files(["-"])] == ["images/a/0.png", "images/b/7.png"]


def test_a_name_that_looks_like_windows_is_the_file_of_that_name_if_there_is_one(images, monkeypatch):
    names = ["a.png\r", "'b.png'", "c.png ", "d\\e.png"]
    monkeypatch.chdir(images)
    for name in names:
        Path(name).write_bytes(picture())
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("\n".join(names).encode())))
    assert [file.name for file in find_files(["-"])] == names


def test_predict_finds_what_prepare_finds(images, tmp_path):
    (images / "a/Thumbs.db").write_bytes(b"x")
    (images / "@eaDir").mkdir()
    (images / "@eaDir/0.png").write_bytes(picture())
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/9.png").write_bytes(picture())
    (images / "c").symlink_to(tmp_path / "outside")
    (images / "a/in.png").symlink_to(images / "b/7.png")
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        for path in sorted(images.rglob("*")):
            if path.is_file() and not path.is_relative_to(images / "c"):
                archive.write(path, str(path.relative_to(images)).replace("/", "\\"))
    for source, path in (("folder", images), ("zip", tmp_path / "images.zip")):
        for follow in (False, True) if source == "folder" else (False,):
            listing = SOURCES[source](PrepareConfig(source, str(path), follow_links=follow))
            wanted = {entry.file for entry in listing.entries if isinstance(entry, Record)}
            found = list(find_files([str(path)], follow))
            assert {file.name.removeprefix(f"{path}/") for file in found if not file.refusal} == wanted
            refused = {"c": "symbolic link that leaves the folder: give --follow-links to use it"}
            assert {file.name.removeprefix(f"{path}/"): file.refusal for file in found if file.refusal} == (
                {} if follow or source == "zip" else refused
            )


def test_a_mistake_is_one_line(artifact, images):
    for arguments, message in (
        (["nothing-*"], "as a pattern it matches nothing"),
        (["images", "--output", "x.xls"], "expected a name that ends in .csv, .jsonl, .parquet"),
    ):
        result = run(artifact, *arguments, cwd=images.parent)
        assert result.returncode == 1
        assert message in result.stderr
        assert result.stderr.count("\n") == 1


@pytest.mark.slow
def test_after_an_interruption_the_rest_is_done_and_no_more(artifact, many, tmp_path):
    output, journal = tmp_path / "predictions.csv", tmp_path / "predictions.csv.partial"
    process = begin(artifact, "many", cwd=tmp_path)
    while not journal.exists() or journal.read_bytes().count(b"\n") < 50:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "interrupted" in said
    kept = journal.read_bytes()
    assert not output.exists()
    marked = re.sub(rb'"answer":\["\w+"', b'"answer":["before"', kept)
    journal.write_bytes(marked[:-5])  # as if a power cut had torn the last line
    (many / "000.png").write_bytes(picture(width=901, height=900))  # another picture meanwhile
    result = run(artifact, "many", cwd=tmp_path)
    assert result.returncode == 0
    rows = read(output)
    assert [row["file"] for row in rows] == [f"many/{index:03d}.png" for index in range(200)]
    before = [row["label"] == "before" for row in rows]
    assert before == [False, *[True] * (kept.count(b"\n") - 3), *[False] * (202 - kept.count(b"\n"))]


def test_rows_of_another_model_are_not_kept(tmp_path):
    (tmp_path / "x").write_bytes(b"")
    file = File("x", str(tmp_path / "x"))
    row = orjson.dumps({"file": "x", "state": state(file), "error": None}) + b"\n"
    one, other = {"artifact_sha256": "a", "columns": []}, {"artifact_sha256": "b", "columns": []}
    with open_journal(tmp_path / "j", one, [file]) as (lines, places):
        assert places == {}
        lines.write(row)
    with open_journal(tmp_path / "j", one, [file]) as (_, places):
        assert list(places) == ["x"]
    with open_journal(tmp_path / "j", other, [file]) as (_, places):
        assert places == {}


@pytest.mark.parametrize(
    "change",
    [
        lambda path: path.write_bytes(b"longer"),
        lambda path: os.utime(path, ns=(5, 5)),
        lambda path: (path.write_bytes(b"seven"), os.utime(path, ns=(3, 3))),  # as cp -p does
        lambda path: path.unlink(),
    ],
    ids=["size", "time", "content alone", "gone"],
)
def test_the_row_of_a_file_that_has_changed_is_not_kept(tmp_path, change):
    files = [File(name, str(tmp_path / name)) for name in ("changed", "same")]
    for file in files:
        Path(file.path).write_bytes(b"three")
        os.utime(file.path, ns=(3, 3))
    with open_journal(tmp_path / "j", {}, files) as (lines, _):
        for file in files:
            lines.write(orjson.dumps({"file": file.name, "state": state(file)}) + b"\n")
    before = state(files[0])
    while state(files[0]) == before:  # the clock of the file system may stand still for some milliseconds
        change(Path(files[0].path))
    with open_journal(tmp_path / "j", {}, files) as (_, places):
        assert list(places) == ["same"]


@pytest.mark.parametrize("journal", [b"something else\n", b"", b"\0\0\n", b"{}\nsomething else\n", b"{}\n{"])
def test_a_journal_that_is_none_begins_anew(tmp_path, journal):
    (tmp_path / "j").write_bytes(journal)
    with open_journal(tmp_path / "j", {}, []) as (_, places):
        assert places == {}
    assert (tmp_path / "j").read_bytes() == b"{}\n"


def test_rows_come_in_the_order_of_the_files(artifact, tmp_path):
    files = [File(str(index), str(tmp_path / str(index))) for index in range(301)]
    for index, file in enumerate(files):
        Path(file.path).write_bytes(picture(width=5 + index % 90))
    lines = b"".join(answers(files, Classifier(artifact), False)).splitlines()
    assert [json.loads(line)["file"] for line in lines] == [file.name for file in files]


@pytest.mark.slow
def test_a_worker_that_is_killed_is_named_and_none_outlives_its_parent(artifact, many, tmp_path):
    for victim in ("worker", "parent"):
        process = begin(artifact, "many", cwd=tmp_path)
        while len(workers := process.children()) < 2:
            assert process.poll() is None
            time.sleep(0.01)
        (workers[0] if victim == "worker" else process).kill()
        _, said = process.communicate(timeout=30)
        _, alive = psutil.wait_procs(workers, timeout=10)
        assert not alive
        if victim == "worker":
            assert process.returncode == 1
            assert said.count("\n") == 1
            assert "a worker process was killed" in said
    assert run(artifact, "many", cwd=tmp_path).returncode == 0


def test_what_is_no_file_is_refused_without_waiting_for_it(artifact, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "good.png").write_bytes(picture())
    result = run(artifact, "dangling", "pipe", "good.png", cwd=tmp_path)
    assert result.returncode == 1
    errors = [row["error"] for row in read(tmp_path / "predictions.csv")]
    assert errors == ["cannot be read: No such file or directory", "neither a file nor a folder", None]


def test_a_worker_that_is_not_forked_loads_the_same_model(artifact):
    """As on macOS, where the classifier is sent to the workers."""
    classifier = Classifier(artifact, threads=1, spinning="never")
    noise = np.random.default_rng(0).integers(0, 256, (3, *classifier.size, 3), np.uint8)
    sent = pickle.loads(pickle.dumps(classifier))
    np.testing.assert_array_equal(sent.probabilities(noise), classifier.probabilities(noise))


def test_a_picture_is_never_an_archive_and_an_archive_given_on_purpose_is_one(artifact, tmp_path):
    archive = tmp_path / "archive"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("inner.png", picture())
    stub = tmp_path / "behind-a-stub.zip"
    stub.write_bytes(b"MZ" + bytes(50) + archive.read_bytes())
    for name, content in {
        "archive.zip": archive.read_bytes(),
        "zip.png": archive.read_bytes(),
        "zip.JPG": archive.read_bytes(),
        "both.png": picture() + archive.read_bytes(),
        "both": picture() + archive.read_bytes(),
    }.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "damaged.zip").write_bytes(archive.read_bytes().replace(b"PK\1\2", b"PK\0\0"))
    found = {
        path.name: [file.name for file in find_files([str(path)])]
        for path in tmp_path.iterdir()
        if path.name != "damaged.zip"
    }
    for name, files in found.items():
        inner = "/inner.png" if name in ("archive", "archive.zip", "behind-a-stub.zip") else ""
        assert files == [f"{tmp_path}/{name}{inner}"]
    with pytest.raises(DataError, match="zip is a damaged zip archive"):
        list(find_files([str(tmp_path / "damaged.zip")]))


def test_predict_says_how_it_read_names_whose_encoding_an_archive_does_not_declare(artifact, tmp_path):
    names = ["Äpfel/0.png", "Möhren/1.png", "Birnen/2.png"]
    plain = io.BytesIO()
    with zipfile.ZipFile(plain, "w") as archive:
        for number, name in enumerate(names):
            archive.writestr("x" * len(name) + str(number), picture())
    data = plain.getvalue()
    for number, name in enumerate(names):
        old = ("x" * len(name) + str(number)).encode()
        data = data.replace(old, name.encode("cp850") + b"g")
    (tmp_path / "old.zip").write_bytes(data)
    result = run(artifact, "old.zip", "old.zip", cwd=tmp_path)
    assert result.returncode == 0
    assert [row["file"] for row in read(tmp_path / "predictions.csv")] == sorted(
        f"old.zip/{n}g" for n in names
    )
    (line,) = result.stderr.splitlines()
    assert line.startswith(
        "WARNING: old.zip: the archive does not say how its names are encoded: they were read as cp850, such as 'Äpfel'"
    )


HOSTILE = [
    '=HYPERLINK("x")',
    "+1",
    "-1",
    "@SUM(1)",
    "\tx",
    "\rx",
    "a\rb",
    "a\nb",
    'a"b',
    "a,b",
    "＝1",
    "'=1",
    "it's",
]


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_a_table_of_any_names_is_read_back_and_no_spreadsheet_executes_it(tmp_path, suffix):
    rows = [[name, name, 0.5, 0.5, None] for name in HOSTILE]
    columns = {"file": str, "label": str, "probability": float, "p(=1)": float, "error": str}
    with (tmp_path / f"t.{suffix}").open("wb") as file:
        WRITERS[f".{suffix}"](iter(rows), columns, file)
    found = read(tmp_path / f"t.{suffix}")
    assert list(found[0]) == list(columns)
    for row, name in zip(found, HOSTILE, strict=True):
        if suffix != "csv":
            assert (row["file"], row["label"], row["p(=1)"]) == (name, name, 0.5)
            continue
        assert row["label"] in (name, f"'{name}")
        assert row["label"][0] not in "=+-@\t\r＝"
    if suffix == "csv":
        assert len({row["label"] for row in found}) == len(HOSTILE)


def test_without_room_for_the_rows_predict_says_so_and_goes_on_later(artifact, tmp_path):
    (tmp_path / "many").mkdir()
    for index in range(600):
        (tmp_path / "many" / f"{index}.png").write_bytes(picture(width=9))
    process = begin(artifact, "many", cwd=tmp_path, most_bytes=20_000)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert re.fullmatch(r"visionpipe: .* cannot be written \(File too large\): make room .*\n", said)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "many",
        "predictions.csv.partial",
        "predictions.csv.partial.lock",
    ]
    assert run(artifact, "many", cwd=tmp_path).returncode == 0
    assert len(read(tmp_path / "predictions.csv")) == 600


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        ("folder.csv", "folder.csv is a folder"),
        ("folder.csv/", "folder.csv is a folder"),
        ("busy.csv", "busy.csv.partial is a folder"),
        ("locked.csv", "locked.csv.partial.lock is a folder"),
        ("file/d.csv", "/file is not a folder"),
        ("file/deep/d.csv", "/file is not a folder"),
        ("nowhere/d.csv", "/nowhere is not a folder"),
        ("x" * 240 + ".csv", "bytes too long"),
        ("folder.csv/d.txt", "expected a name that ends in .csv, .jsonl, .parquet"),
    ],
)
def test_an_output_that_cannot_be_written_is_refused_before_anything_else(
    tmp_path, monkeypatch, output, reason
):
    monkeypatch.chdir(tmp_path)
    for name in ("folder.csv", "busy.csv.partial", "locked.csv.partial.lock"):
        Path(name).mkdir()
    Path("file").write_text("")
    Path("nowhere").symlink_to("gone")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ConfigError, match=re.escape(f"--output {Path(output)}: ")) as refused:
        predict(["-"], Path(output), "no model", probabilities=False)
    assert reason in str(refused.value)
    assert sorted(tmp_path.rglob("*")) == before
