"""Numbers and ordered classes as targets: refused with one sentence that says what is possible."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from visionpipe.cli import main
from visionpipe.data.config import PrepareConfig, TableConfig
from visionpipe.data.measurements import measured
from visionpipe.data.sources import list_source
from visionpipe.errors import ConfigError, DataError
from visionpipe.project.params import load_params
from visionpipe.project.table_survey import guess_columns
from visionpipe.tasks import TASKS

CHECKOUT = Path(__file__).parents[2]
ADVICE = "predict a number by cutting it into classes"


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("cells", "example"),
    [
        (["0.37", "12.5", "3", "", "nan"], "0.37"),
        (["0,37", "12,5", "3"], "0,37"),
        (["-1e-3", "2e5", "7"], "-1e-3"),
        ([f"{n / 100:.2f}" for n in range(100)] * 50, "0.01"),
        (list(map(str, range(1000, 1030))), "1000"),
        (["0.5", "1.0", "2.0"] * 20, None),  # doses
        (["1.0", "2.0", "3.0"], None),  # classes, as pandas writes them beside empty cells
        (list(map(str, range(100))) * 2, None),  # classes that are numbered
        (["0.1", "0.2", "0.3", "cat"], None),
        (["v1.5", "v1.6", "v1.7"], None),
        (["0.5", "1.5"], None),
        ([], None),
    ],
)
def test_many_different_numbers_are_measured_and_no_classes(cells, example):
    assert measured(cells) == example


def write(columns, row, count=40):
    Path("set").mkdir(exist_ok=True)
    for n in range(count):
        Image.fromarray(np.full((8, 8, 3), n, np.uint8)).save(f"set/{n}.png")
    lines = [f"{n}.png,{row(n)}" for n in range(count)]
    Path("set/table.csv").write_text("\n".join([f"file,{columns}", *lines]))


@pytest.mark.parametrize(
    ("columns", "row", "label"),
    [
        ("price", lambda n: n * 1.37, None),  # the only column
        ("target,sex", lambda n: f"{n / 7:.3f},{'mf'[n % 2]}", None),  # named like a label
        ("breed,age", lambda n: f"{'ab'[n % 2]},{n / 7:.3f}", "age"),
    ],
)
def test_init_refuses_a_column_of_numbers(columns, row, label, capsys):
    write(columns, row)
    options = ["--label", label] if label else []
    assert main(["init", "project", "--images", "set/table.csv", *options]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert f"the column {label or columns.split(',')[0]!r} holds numbers, such as" in line
    assert ADVICE in line
    assert not Path("project").exists()


def test_numbers_that_are_no_label_are_metadata():
    write("breed,age", lambda n: f"{'ab'[n % 2]},{n / 7:.3f}")
    assert guess_columns(Path("set/table.csv")).columns.label == "breed"


@pytest.mark.parametrize(
    ("task", "columns"), [("single", {"label": "age"}), ("multi", {"labels": ("cat", "age")})]
)
def test_prepare_refuses_a_column_of_numbers(task, columns):
    write("cat,age", lambda n: f"{n % 2},{n / 7:.3f}")
    with pytest.raises(DataError, match=ADVICE) as caught:
        list_source(PrepareConfig("table", "set", table=TableConfig(**columns)), TASKS[task].several)
    assert str(caught.value).startswith(
        f"prepare.table.{next(iter(columns))}: the column 'age' of table.csv holds numbers"
    )


def test_a_set_of_the_hub_with_numbers_as_labels_is_refused():
    datasets = pytest.importorskip("datasets")
    features = {"image": datasets.Image(), "label": datasets.Value("float32")}
    content = {"image": [None] * 4, "label": [0.37, 12.5, 3.25, 8.0]}
    datasets.Dataset.from_dict(content, features=datasets.Features(features)).save_to_disk("set")
    with pytest.raises(DataError, match=ADVICE):
        list_source(PrepareConfig("huggingface", "set"))


@pytest.mark.parametrize("task", ["regression", "ordinal", "multii", "null", "[single]", "3"])
def test_another_task_is_refused_with_what_is_possible(task):
    text = (CHECKOUT / "params.yaml").read_text()
    assert "\ntask: single " in text
    Path("params.yaml").write_text(text.replace("\ntask: single ", f"\ntask: {task} "))
    with pytest.raises(ConfigError) as caught:
        load_params()
    assert str(caught.value).startswith("params.yaml: task: expected one of single, multi, received ")
    assert ADVICE in str(caught.value)
    assert "ordered classes, such as grades, with task: single" in str(caught.value)
    assert ("did you mean 'multi'?" in str(caught.value)) == (task == "multii")
