"""`visionpipe predict` in a process of its own: which files it finds, what it writes, and how it goes on."""

import csv
import json
import os
import pickle
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import psutil
import pyarrow.parquet
import pytest
from servers import CHECKOUT, CLASSES, picture

from visionpipe.data.paths import File
from visionpipe.predict import answers, open_journal
from visionpipe.serving.classifier import Classifier


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


def begin(artifact, *arguments, cwd):
    return psutil.Popen(
        command(artifact, *arguments),
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(CHECKOUT)},
        stderr=subprocess.PIPE,
        text=True,
        # Ignored where the suite runs behind &.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
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


def test_a_mistake_is_one_line(artifact, images):
    for arguments, message in (
        (["nothing-*"], "nothing matches it as a pattern"),
        (["images", "--output", "x.xls"], "expected a name that ends in .csv, .jsonl, .parquet"),
    ):
        result = run(artifact, *arguments, cwd=images.parent)
        assert result.returncode == 1
        assert message in result.stderr
        assert result.stderr.count("\n") == 1


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
    journal.write_bytes(kept[:-5])  # as if a power cut had torn the last line
    for name in ("000.png", "001.png"):  # done already: not read again
        (many / name).write_bytes(b"")
    result = run(artifact, "many", cwd=tmp_path)
    assert result.returncode == 0
    rows = read(output)
    assert [row["file"] for row in rows] == [f"many/{index:03d}.png" for index in range(200)]
    assert all(row["label"] for row in rows)


def test_rows_of_another_model_are_not_kept(tmp_path):
    with open_journal(tmp_path / "j", {"artifact_sha256": "a", "columns": []}) as (lines, done):
        assert done == set()
        lines.write(b'{"file": "x"}\n')
    with open_journal(tmp_path / "j", {"artifact_sha256": "a", "columns": []}) as (_, done):
        assert done == {"x"}
    with open_journal(tmp_path / "j", {"artifact_sha256": "b", "columns": []}) as (_, done):
        assert done == set()


def test_rows_come_in_the_order_of_the_files(artifact, tmp_path):
    files = [File(str(index), str(tmp_path / str(index))) for index in range(301)]
    for index, file in enumerate(files):
        Path(file.path).write_bytes(picture(width=5 + index % 90))
    lines = b"".join(answers(files, Classifier(artifact), False)).splitlines()
    assert [json.loads(line)["file"] for line in lines] == [file.name for file in files]


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
            assert "a worker was killed" in said
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
