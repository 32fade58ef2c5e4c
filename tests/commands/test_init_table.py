"""`visionpipe init` on a table of images: which column says what, and that DVC watches the table and the images."""

import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from repository import CHECKOUT, Project, executed

from visionpipe.cli import main
from visionpipe.commands import init as command
from visionpipe.project.machine import Machine
from visionpipe.project.params import load_params


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.setattr(command, "this_machine", lambda backend: Machine(2, 16 * 2**30, 200.0))


def write_images(folder, count=40):
    folder.mkdir(parents=True)
    for n in range(count):
        pixels = np.random.default_rng(n).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"i{n}.png")


def write_table(path, header, row, count=40):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([header, *(row(n) for n in range(count))]))


def prepare_params(table, *options):
    assert main(["init", "project", "--images", str(table), *options]) == 0
    return load_params(Path("project/params.yaml")).prepare


def one_line(capsys, table, *options):
    capsys.readouterr()
    assert main(["init", "project", "--images", str(table), *options]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_columns_are_recognised_by_their_values_and_names(tmp_path, capsys):
    write_images(Path("set/img"))
    write_table(
        Path("set/meta.csv"), "PatientID;age;image_id;dx;usage;note",
        lambda n: f"p{n // 4};{20 + n};i{n};{'ab'[n % 2]};{['train', 'val', 'test'][n // 4 % 3]};x",
    )  # fmt: skip
    config = prepare_params("set/meta.csv")
    table = config.table
    assert (config.source, config.path, config.group) == ("table", str(tmp_path / "set"), "PatientID")
    assert (table.path, table.file, table.label, table.split, table.root) == (
        "meta.csv", "image_id", "dx", "usage", "img",
    )  # fmt: skip
    said = capsys.readouterr().out
    assert "columns       path meta.csv, file image_id, label dx, split usage, root img" in said
    assert "groups        PatientID: 10 groups" in said
    assert "metadata      PatientID, age, note: for slices" in said


def test_the_only_column_with_few_values_is_the_label_and_otherwise_it_is_asked_for(capsys):
    write_images(Path("set"))
    write_table(Path("set/t.csv"), "name,what", lambda n: f"i{n}.png,{n % 3}")
    assert prepare_params("set/t.csv").table.label == "what"
    shutil.rmtree("project")
    write_table(Path("set/t.csv"), "name,what,how", lambda n: f"i{n}.png,{n % 3},{n % 2}")
    assert (
        "t.csv: which column holds the labels? it may be any of what, how: name it with --label COLUMN"
        in one_line(capsys, "set/t.csv")
    )
    assert prepare_params("set/t.csv", "--label", "how").table.label == "how"
    shutil.rmtree("project")
    assert "--label: t.csv has no column 'who' (did you mean 'how'?)" in one_line(
        capsys, "set/t.csv", "--label", "who"
    )


def test_groups_that_the_table_tears_apart_are_said_and_not_asked_for(capsys):
    write_images(Path("set"))
    generator = random.Random(0)
    write_table(
        Path("set/t.csv"), "file,label,subject,split",
        lambda n: f"i{n}.png,{n % 2},s{n % 9},{generator.choice(['train', 'test'])}",
    )  # fmt: skip
    config = prepare_params("set/t.csv")
    assert (config.group, config.table.split) == (None, "split")
    assert "the column subject has values in two splits, such as s0" in capsys.readouterr().out


ODD = {
    "one column for each class": (
        "image,MEL,NV,BCC", lambda n: f"i{n}.png,{','.join('1.0' if n % 3 == k else '0.0' for k in range(3))}",
        "meta.csv: the columns MEL, NV, BCC stand for a class each: add one column with the name of the class",
    ),
    "addresses": (
        "image,label", lambda n: f"https://example.org/i{n}.png,{'ab'[n % 2]}",
        "meta.csv: the column image has addresses: download the images, and name the files",
    ),
    "no names of columns": (
        "i0.png,a", lambda n: f"i{n}.png,{'ab'[n % 2]}",
        "meta.csv: the first line must name the columns, but 'i0.png' is a file: add a line such as file,label",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", ODD)
def test_a_table_of_another_form_is_one_line_that_says_what_to_do(kind, capsys):
    head, line, expected = ODD[kind]
    write_images(Path("set"))
    write_table(Path("set/meta.csv"), head, line)
    assert one_line(capsys, "set/meta.csv").startswith(f"visionpipe: {expected}")


def test_a_table_without_its_images_is_one_line(capsys):
    write_table(Path("set/t.csv"), "file,label", lambda n: f"i{n}.png,{n % 2}")
    assert "t.csv: no column names files in" in one_line(capsys, "set/t.csv")


def test_a_folder_with_a_table_and_without_folders_of_classes_hints_at_the_table(capsys):
    write_images(Path("set/images"))
    write_table(Path("set/t.csv"), "file,label", lambda n: f"i{n}.png,{n % 2}")
    assert "; if t.csv names the classes of the images, give --images that table" in one_line(capsys, "set")


def test_a_table_beside_the_folder_of_its_images_and_a_copy():
    write_images(Path("set/images"))
    write_table(Path("set/tables/t.csv"), "file,label", lambda n: f"../images/i{n}.png,{n % 2}", 30)
    config = prepare_params("set/tables/t.csv")
    assert (config.path, config.table.path) == (str(Path("set").resolve()), "tables/t.csv")
    shutil.rmtree("project")
    assert prepare_params("set/tables/t.csv", "--copy").path == "data/images"
    copied = {
        path.relative_to("project/data/images").as_posix() for path in Path("project/data").rglob("*.*")
    }
    assert copied == {"tables/t.csv", *(f"images/i{n}.png" for n in range(30))}


def test_dvc_prepares_again_when_the_table_an_image_or_a_decision_changes(tmp_path):
    write_images(Path("set/img"))
    write_table(Path("set/t.csv"), "file,label", lambda n: f"i{n}.png,{n % 2}")
    prepare_params("set/t.csv")
    project = Project(tmp_path / "project")

    def runs():
        return executed(project.dvc("repro", "prepare", PYTHONPATH=str(CHECKOUT)).stdout)

    def changed():
        return "prepare" in project.dvc("status", "prepare").stdout

    assert runs() == ["prepare"]
    assert not changed()
    for path, content in (
        ("set/img/i0.png", Path("set/img/i1.png").read_bytes()),
        ("set/t.csv", Path("set/t.csv").read_bytes().replace(b"i3.png,1", b"i3.png,0")),
    ):
        before = Path(path).read_bytes()
        Path(path).write_bytes(content)
        assert changed()
        Path(path).write_bytes(before)
        assert not changed()
    with (project.root / "decisions.csv").open("a") as file:
        file.write("img/i0.png,dark,,drop\n")
    assert runs() == ["prepare"]
    assert '"dropped by decisions.csv"' in (project.root / "data/prepared/manifest.json").read_text()
