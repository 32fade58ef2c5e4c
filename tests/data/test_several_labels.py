"""Images with several labels: they are read, divided by label, and refused where they contradict the task."""

import csv
import io
import json
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from visionpipe.cli import main
from visionpipe.commands import init as command
from visionpipe.commands.doctor import doctor
from visionpipe.data.config import PrepareConfig, TableConfig
from visionpipe.data.decoding import Usable
from visionpipe.data.duplicates import superfluous
from visionpipe.data.labels import Labels, label_matrix, labels_of, read_labels, readable
from visionpipe.data.listing import Record, Rejected
from visionpipe.data.prepared import PREPARED, open_prepared
from visionpipe.data.sources import list_source
from visionpipe.data.splits import draw_folds, draw_splits
from visionpipe.data.stratification import stratified
from visionpipe.data.understood import contradictions
from visionpipe.doctor.models import best_model
from visionpipe.doctor.several import label_probabilities
from visionpipe.errors import ConfigError, DataError
from visionpipe.project.lineage import prepare_params
from visionpipe.project.machine import Machine
from visionpipe.project.params import Params, check_groups, load_params
from visionpipe.project.paths import report_folder
from visionpipe.stages.prepare import prepare
from visionpipe.tasks import TASKS
from visionpipe.tasks.multi import Multi
from visionpipe.tasks.single import Single

CLASSES = ("bird", "cat", "dog")


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def write(table, count=0, root="set", same=()):
    """Writes a table, and pictures i0.png to iN.png; those of `same` show the first picture."""
    folder = Path(root)
    folder.mkdir(exist_ok=True)
    folder.joinpath("labels.csv").write_text(table)
    for n in range(count):
        pixels = np.random.default_rng(0 if n in same else n).integers(0, 256, (12, 12, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"i{n}.png")


def listing(task="multi", **columns):
    return list_source(PrepareConfig("table", "set", table=TableConfig(**columns)), task == "multi")


def labels(found):
    return {entry.file: entry.labels for entry in found.entries if isinstance(entry, Record)}


def refusals(found):
    return {entry.file: entry.reason for entry in found.entries if isinstance(entry, Rejected)}


# Tables


def test_every_way_to_write_yes_and_no_is_read_and_other_cells_are_errors_of_their_line():
    write(
        "file,cat,dog,bird,note\ni0.png,1,0,,x\ni1.png,TRUE,false,No,x\ni2.png,0.0,1.0,-1,x\ni3.png,yes,Yes,nan,x\n"
        "i4.png,0,0,0,x\ni5.png,2,0,0,x\ni6.png,,,,x\ni7.png,1,0,1,x\n",
        8,
    )
    found = listing(labels=("cat", "dog", "bird"))
    assert labels(found) == {
        "i0.png": Labels(("cat",), ("bird",)),
        "i1.png": Labels(("cat",)),
        "i2.png": Labels(("dog",), ("bird",)),
        "i3.png": Labels(("cat", "dog"), ("bird",)),
        "i4.png": Labels(()),
        "i7.png": Labels(("bird", "cat")),
    }
    assert refusals(found) | {"labels.csv": ""} == {
        "i5.png": "line 7 of labels.csv: the label cat: '2' is neither 0 nor 1, nor empty",
        "i6.png": "line 8 of labels.csv: no label is known",
        "labels.csv": "",
    }
    assert (found.classes, found.columns) == (("cat", "dog", "bird"), ("note",))
    assert label_matrix([labels(found)[f"i{n}.png"] for n in (0, 2, 4)], found.classes).tolist() == [
        [1, 0, -1], [0, 1, -1], [0, 0, 0],
    ]  # fmt: skip


def test_without_names_all_columns_of_zeros_and_ones_are_labels_but_those_that_say_something_else():
    write("file,cat,age,dog,weight,note\ni0.png,1,30,0,1,0\ni1.png,1,40,1,0,x\ni2.png,0,50,0,1,y\n", 3)
    found = listing(weight="weight")
    assert (found.classes, found.columns) == (("cat", "dog"), ("age", "note"))
    assert "labels of labels.csv: the columns cat, dog; prepare.table.labels chooses others" in found.notes


def test_a_separator_divides_labels_and_an_empty_cell_is_an_image_without_any():
    write("file,tags\ni0.png, dog | cat|cat\ni1.png,\ni2.png,cat|\ni3.png,Cat\n", 4)
    found = listing(label="tags", separator="|")
    assert labels(found) == {
        "i0.png": Labels(("Cat", "dog")),
        "i1.png": Labels(()),
        "i2.png": Labels(("Cat",)),
        "i3.png": Labels(("Cat",)),
    }
    assert [entry.class_name for entry in found.entries if isinstance(entry, Record)] == [
        "Cat | dog", "no label", "Cat", "Cat",
    ]  # fmt: skip


def test_a_file_with_two_sets_of_labels_is_refused_by_its_lines_and_with_one_set_used_once():
    write("file,cat,dog\ni0.png,1,0\ni0.png,1,\ni1.png,1,1\ni1.png,yes,true\ni2.png,0,1\n", 3)
    found = listing()
    assert refusals(found)["i0.png"] == (
        "two labels in labels.csv: 'cat' on line 2, 'cat (unknown: dog)' on line 3"
    )
    assert set(labels(found)) == {"i1.png", "i2.png"}


@pytest.mark.parametrize(
    ("table", "task", "columns", "message"),
    [
        ("file,label\ni0.png,a\ni1.png,b\n", "multi", {}, "where each image has one label, write task: single"),
        ("file,a,b\ni0.png,1,0\ni1.png,0,1\n", "single", {}, "write task: multi and prepare.table.labels"),
        ("file,a,b\ni0.png,1,1\ni1.png,0,1\n", "single", {"labels": ("a", "b")}, "labels: is for images with several"),
        ("file,t\ni0.png,a|b\ni1.png,b\n", "single", {"label": "t", "separator": "|"}, "write task: multi"),
        ("file,t\ni0.png,a;b\ni1.png,b\n", "multi", {"label": "t", "separator": "|"}, "has exactly one label"),
        ("file,a,n\ni0.png,1,x\ni1.png,0,y\n", "multi", {}, "only one column of labels, 'a': task: multi needs two"),
        ("file,a,a|b\ni0.png,1,1\ni1.png,0,0\n", "multi", {}, "the name of the class 'a|b' has a '|'"),
        ("file,a,b\ni0.png,1,1\ni1.png,0,0\n", "multi", {"labels": ("a", "c")}, "labels: labels.csv has no column 'c'"),
        ("file,a,b\ni0.png,1,0\ni1.png,1,0\n", "multi", {"labels": ("a", "b")}, "holds only the class 'a'"),
    ],
)  # fmt: skip
def test_data_that_contradict_the_task_are_refused_with_what_to_write(table, task, columns, message):
    write(table, 2)
    with pytest.raises(DataError) as caught:
        listing(task, **columns)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("source", ["folder", "zip", "idx"])
def test_sources_of_one_label_say_what_is_possible(source):
    with pytest.raises(
        DataError, match=f"source: {source} gives each image one label: write task: single; several"
    ):
        list_source(PrepareConfig(source, "set"), several=True)


def test_classes_that_look_like_several_labels_are_a_warning_where_the_task_is_single():
    write("file,label\ni0.png,cat|dog\ni1.png,cat\ni2.png,dog\ni3.png,cat|dog\n", 4)
    assert "task: multi and prepare.table.separator: '|'" in listing("single").notes[-1]
    write("file,label\ni0.png,tomato|ill\ni1.png,tomato|well\ni2.png,leek|ill\ni3.png,leek|well\n", 4)
    assert not listing("single").notes


@pytest.mark.parametrize(
    "table",
    [{"labels": ("a",)}, {"labels": ("a", "a")}, {"labels": ("a", "b"), "separator": "|"}, {"separator": ""}],
)
def test_impossible_keys_are_refused(table):
    with pytest.raises(ConfigError, match=r"prepare\.table\.(labels|separator)"):
        check_groups(PrepareConfig("table", "set", table=TableConfig(**table)))


def test_the_train_key_of_a_table_with_one_label_does_not_change():
    written = prepare_params(PrepareConfig("table", "set", table=TableConfig()))["table"]
    assert not {"labels", "separator"} & set(written)
    assert (
        prepare_params(PrepareConfig("table", "set", table=TableConfig(separator="|")))["table"]["separator"]
        == "|"
    )


# Other sources


def test_lists_of_classes_of_the_hub_are_labels_and_other_sets_are_refused():
    datasets = pytest.importorskip("datasets")
    several = datasets.Sequence(datasets.ClassLabel(names=list(CLASSES)))
    buffer = io.BytesIO()
    Image.new("RGB", (9, 9)).save(buffer, "PNG")

    def save(path, kind, values):
        content = {"image": [{"bytes": buffer.getvalue(), "path": None}] * len(values), "objects": values}
        features = datasets.Features({"image": datasets.Image(), "objects": kind})
        datasets.Dataset.from_dict(content, features=features).save_to_disk(path)
        return lambda task: list_source(PrepareConfig("huggingface", path), task == "multi")

    saved = save("several", several, [[1, 2], [], [0], None, [2, 1]])
    found = saved("multi")
    rows = list(found.entries)
    assert [row.labels and row.labels.present for row in rows if isinstance(row, Record)] == [
        ("cat", "dog"), (), ("bird",), ("cat", "dog"),
    ]  # fmt: skip
    assert [row.reason for row in rows if isinstance(row, Rejected)] == ["has no label"]
    assert (found.classes, found.several) == (CLASSES, True)
    with pytest.raises(
        DataError, match="the column objects holds several labels of an image: write task: multi"
    ):
        saved("single")
    with pytest.raises(DataError, match=r"the column objects holds no list of classes .* write task: single"):
        save("one", several.feature, [1, 2, 0])("multi")


def test_init_on_a_set_of_the_hub_with_lists_of_classes_writes_the_task_and_why(monkeypatch, capsys):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(command, "this_machine", lambda backend: Machine(2, 16 * 2**30, 200.0))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(Path.cwd().parent))
    write("", 40)
    features = {
        "image": datasets.Image(),
        "objects": datasets.Sequence(datasets.ClassLabel(names=list(CLASSES))),
    }
    content = {
        "image": [{"bytes": Path(f"set/i{n}.png").read_bytes(), "path": None} for n in range(40)],
        "objects": [[0, 1], [], [2], [1, 2]] * 10,
    }
    datasets.Dataset.from_dict(content, features=datasets.Features(features)).save_to_disk("saved")
    assert main(["init", "project", "--images", "saved"]) == 0
    assert "task          multi: the column objects holds lists of classes" in capsys.readouterr().out
    made = load_params(Path("project/params.yaml"))
    assert (made.task, list_source(made.prepare, TASKS[made.task].several).classes) == ("multi", CLASSES)
    assert main(["init", "with-copy", "--images", "saved", "--copy"]) == 0
    monkeypatch.chdir("with-copy")
    copied = list_source(load_params().prepare, several=True)
    assert len(list(copied.entries)) == 40


# Splits


def images(matrix, group=lambda n: None):
    found = []
    for n, row in enumerate(matrix):
        of_image = labels_of(f"c{column}" for column in np.flatnonzero(row))
        found.append(
            Usable(
                None, str(of_image), f"{n}.png", f"{n:032d}".encode(), (9, 9), None, group(n), labels=of_image
            )
        )
    return found


def random_labels(count, classes, seed=0):
    generator = np.random.default_rng(seed)
    return generator.random((count, classes)) < np.geomspace(0.4, 0.005, classes)


def largest_deviation(matrix, parts, shares):
    """The largest difference, in images, between the images with a label in a part and its share of them."""
    return max(
        abs(matrix[np.array(parts) == part].sum(axis=0) - share * matrix.sum(axis=0)).max()
        for part, share in enumerate(shares)
    )


def test_every_part_has_its_share_of_every_label():
    matrix, shares = random_labels(4000, 20), [0.64, 0.2, 0.16]
    matrix[:400] = False  # as many as a frequent label, and as the labels they keep their share
    sets = [[[f"c{column}" for column in np.flatnonzero(row)]] for row in matrix]
    parts = stratified(sets, shares)
    chance = np.random.default_rng(1).choice(3, len(matrix), p=shares)
    assert largest_deviation(matrix, parts, shares) <= 3 < largest_deviation(matrix, chance, shares) / 4
    assert np.bincount(parts).tolist() == pytest.approx([2560, 800, 640], abs=10)
    none = np.bincount(np.array(parts)[~matrix.any(axis=1)])
    assert none.tolist() == pytest.approx([share * none.sum() for share in shares], abs=1)
    assert stratified(sets, shares) == parts


def test_one_label_each_is_divided_exactly_as_its_closed_form_says():
    sets = [[[name]] for name in "a" * 50 + "b" * 10 + "c" * 5]
    parts = np.array(stratified(sets, [0.6, 0.2, 0.2]))
    counts = [np.bincount(part, minlength=3).tolist() for part in np.split(parts, [50, 60])]
    assert counts == [[30, 10, 10], [6, 2, 2], [3, 1, 1]]


def test_sets_stay_together_and_a_rare_label_is_in_the_first_part():
    assert stratified([[["a"], ["a", "b"]], [["a"]], [["a"]], [[]]], [0.5, 0.5])[0] == 0
    for seed in range(20):
        matrix = random_labels(40, 12, seed)
        sets = [[[f"c{column}" for column in np.flatnonzero(row)]] for row in matrix]
        parts = np.array(stratified(sets, [0.4, 0.3, 0.3]))
        assert (matrix[parts == 0].any(axis=0) >= matrix.any(axis=0)).all()


def test_splits_of_labels_keep_groups_and_copies_together_and_folds_too():
    matrix = random_labels(900, 8)
    usable = images(matrix, lambda n: f"g{n // 3}" if n < 300 else None)
    usable[700] = replace(usable[700], digest=usable[701].digest)
    config = PrepareConfig("folder", "x")
    splits = draw_splits(usable, frozenset(), config, 0)
    assert sorted(row for rows in splits.values() for row in rows) == list(range(900))
    home = {row: split for split, rows in splits.items() for row in rows}
    homes = defaultdict(set)
    for row, image in enumerate(usable):
        homes[image.group or image.digest].add(home[row])
    assert all(len(of_group) == 1 for of_group in homes.values())
    assert len(splits["test"]) == pytest.approx(180, abs=5)
    assert len(splits["validation"]) == pytest.approx(144, abs=5)
    assert (
        draw_splits(usable, frozenset(), config, 0) == splits != draw_splits(usable, frozenset(), config, 1)
    )
    folds = draw_folds(usable, splits, 4, 0)
    rows = sorted(folds)
    assert largest_deviation(matrix[rows], [folds[row] for row in rows], [0.25] * 4) <= 3


def test_the_split_of_a_named_group_depends_on_nothing_but_its_key():
    config = PrepareConfig("folder", "x", group="(.*)_")
    usable = images(random_labels(400, 5), lambda n: f"g{n // 2}")
    home = {
        usable[row].file: split
        for split, rows in draw_splits(usable, frozenset(), config, 0).items() for row in rows
    }  # fmt: skip
    fewer = usable[::3]
    for split, rows in draw_splits(fewer, frozenset(), config, 0).items():
        assert all(home[fewer[row].file] == split for row in rows)


# Copies


def test_copies_contradict_each_other_only_where_both_know_the_label():
    def image(name, **of_image):
        known = Labels(**of_image)
        return Usable(None, str(known), name, b"same", (9, 9), None, labels=known)

    cat, unsure = image("a", present=("cat",)), image("b", present=("cat",), unknown=("dog",))
    both = image("c", present=("cat", "dog"))
    assert list(contradictions([cat, unsure])) == list(contradictions([unsure, both])) == []
    (warning,) = contradictions([cat, both])
    assert warning == "pictures that have different labels: 1, such as 'a' and 'c'"
    assert superfluous([cat, both], np.zeros(2, int)) == {
        0: "a copy of 'c', which has other labels",
        1: "a copy of 'a', which has other labels",
    }
    assert superfluous([unsure, both], np.zeros(2, int)) == {1: "a copy of 'b'"}


def test_sets_of_labels_are_read_as_they_are_written():
    for row in ([1, 0, 1], [0, 0, 0], [-1, 1, 0]):
        text = readable(np.array(row), CLASSES)
        assert read_labels(text, CLASSES).present == tuple(np.array(CLASSES)[np.array(row) == 1])
    with pytest.raises(KeyError, match="fox"):
        read_labels("cat | fox", CLASSES)


# The stage, the doctor and init


def params(**changes):
    config = PrepareConfig("table", "set", size=(12, 12), table=TableConfig(labels=CLASSES), **changes)
    return Params(config, {}, task="multi")


def write_sixty(**cells):
    rows = [cells.get(f"i{n}", f"{int(n % 4 == 0)},{int(n % 2)},{int(n % 3 == 0)}") for n in range(60)]
    lines = "\n".join(f"i{n}.png,{row}" for n, row in enumerate(rows))
    write(f"file,bird,cat,dog\n{lines}\n", 60, same=(7,))


def test_prepared_labels_are_a_table_and_the_manifest_counts_them(capsys):
    write_sixty(i1=",1,0", i7="1,1,1")  # i7 shows the same picture as i0
    prepare(params(folds=3))
    data = open_prepared(PREPARED)
    assert (data.task, data.classes) == ("multi", list(CLASSES))
    arrays = {split: data.labels(split) for split in data.splits}
    assert all(array.dtype == np.int8 for array in arrays.values())
    rows = list(csv.reader(Path("set/labels.csv").read_text().splitlines()))[1:]
    expected = {file: [int(cell or -1) for cell in cells] for file, *cells in rows}
    for split, array in arrays.items():
        assert dict(zip(data.files(split), array.tolist(), strict=True)).items() <= expected.items()
        assert data.manifest["counts"][split] == dict(zip(CLASSES, (array == 1).sum(axis=0), strict=True))
        assert data.manifest["without_label"][split] == (array == 0).all(axis=1).sum()
    assert sum(data.manifest["images"].values()) == data.manifest["kept"] == 60
    assert sum(counts["bird"] for counts in data.manifest["unknown"].values()) == 1
    assert set(data.folds()) == {"train", "validation"}
    out = capsys.readouterr().out
    assert "prepared 60 of 60 files" in out
    assert "images without a label: " in out
    assert "labels that are unknown, and left out of loss and metrics: " in out
    assert "pictures that have different labels: 1, such as 'i0.png' and 'i7.png'" in out


def test_decisions_relabel_whole_sets_and_what_is_unknown_stays_so():
    write_sixty(i1=",1,0")
    Path("decisions.csv").write_text(
        "file,finding,suggestion,decision\ni1.png,label,cat | dog,relabel\ni2.png,label,,relabel no label\n"
    )
    prepare(params())
    data = open_prepared(PREPARED)
    found = {
        file: row for split in data.splits
        for file, row in zip(data.files(split), data.labels(split).tolist(), strict=True)
    }  # fmt: skip
    assert (found["i1.png"], found["i2.png"]) == ([-1, 1, 1], [0, 0, 0])
    Path("decisions.csv").write_text("file,finding,suggestion,decision\ni1.png,label,,relabel cat | dgo\n")
    with pytest.raises(DataError, match=r"line 2: there is no class 'dgo' \(did you mean 'dog'"):
        prepare(params())


def test_the_doctor_finds_wrong_labels_copies_and_outliers_of_several_labels(capsys):
    Path("set").mkdir()
    generator, lines, names = np.random.default_rng(0), [], ("red", "green", "blue")
    wrong = {n: names[n % 3] for n in range(5, 118, 10)}
    for n in range(120):
        has = generator.random(3) < 0.5
        pixels = np.where(has, 200, 40) + generator.normal(0, 12, (16, 16, 3))
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(f"set/i{n}.png")
        said = has ^ np.array([wrong.get(n) == name for name in names])
        lines.append(f"i{n}.png,{','.join(map(str, said.astype(int)))}")
    Path("set/i120.png").write_bytes(Path("set/i0.png").read_bytes())
    cells = lines[0].partition(",")[2]
    lines.append(f"i120.png,{1 - int(cells[0])}{cells[1:]}")
    Path("set/labels.csv").write_text("\n".join([f"file,{','.join(names)}", *lines]) + "\n")
    Path("decisions.csv").write_text("file,finding,suggestion,decision\n")
    prepare(Params(PrepareConfig("table", "set", size=(16, 16), table=TableConfig()), {}, task="multi"))
    doctor(Params(PrepareConfig("table", "set", table=TableConfig()), {}, task="multi"))
    out = capsys.readouterr().out
    rows = list(csv.DictReader(Path("decisions.csv").read_text().splitlines()))
    labels_found = {row["file"]: row["suggestion"] for row in rows if row["finding"] == "label"}
    truth = {}
    for n in wrong:
        cells = dict(zip(names, lines[n].split(",")[1:], strict=True))
        right = [name for name in names if (cells[name] == "1") != (name == wrong[n])]
        truth[f"i{n}.png"] = " | ".join(sorted(right)) or "no label"
    assert len(truth.items() & labels_found.items()) >= 9  # of 12
    assert len(labels_found) <= 15
    assert "one picture, several labels" in out
    assert "Classes that look alike are not sought" in Path(".visionpipe/doctor/index.html").read_text()


def test_the_doctor_names_what_gives_a_label_away_and_rare_labels():
    """Cats are JPEG files, most of camera A; of a third of the images nobody knows whether they show a cat."""
    folder = Path("set")
    folder.mkdir()
    generator, lines = np.random.default_rng(0), []
    for n in range(240):
        cat, dog, bird = n % 3 == 0, generator.random() < 0.5, n % 40 == 0
        pixels = generator.integers(0, 256, (12, 12, 3), np.uint8)
        Image.fromarray(pixels).save(file := folder / f"{n}.{'jpg' if cat else 'png'}")
        known = str(int(cat)) if n % 4 else ""
        lines.append(f"{file.name},{int(bird)},{known},{int(dog)},{'A' if cat and n % 7 else 'B'}")
    (folder / "labels.csv").write_text("\n".join(["file,bird,cat,dog,camera", *lines]))
    Path("decisions.csv").write_text("file,finding,suggestion,decision\n")
    prepare(params())
    shortcuts = open_prepared(PREPARED).manifest["findings"]["shortcuts"]
    assert [(found["class_name"], found["source"]) for found in shortcuts["found"]] == [
        ("cat", "file format")
    ]
    assert shortcuts["largest"] == 1
    doctor(params())
    found = {
        f["key"]: f["items"]
        for f in json.loads(Path(".visionpipe/doctor/doctor.json").read_text())["findings"]
    }
    notes = {key: [item["note"] for item in found[key]] for key in ("shortcut", "metadata", "rare-labels")}
    assert notes["shortcut"][0].startswith(
        "the file format recognises 'cat' with an F1 of 1.00, chance 0.49; 100%"
    )
    (note,) = notes["metadata"]
    assert note.startswith("the column 'camera' recognises 'cat'")
    (note,) = notes["rare-labels"]
    assert note.startswith("'bird' has 4 training images, the largest class ")
    shown = found["shortcut"][0]["images"]
    assert [image["file"].endswith(".jpg") for image in shown] == [True] * 4 + [False] * 2


def test_the_answers_of_a_model_are_averaged_with_those_of_the_features():
    generator = np.random.default_rng(0)
    features, labels = generator.normal(size=(30, 5)).astype(np.float32), generator.integers(-1, 2, (30, 3))
    model = generator.random((30, 3)).astype(np.float32)
    alone, with_model = (label_probabilities(features, labels, models)[0] for models in ((), [model]))
    np.testing.assert_allclose(with_model, (alone + model) / 2, rtol=1e-5)


def test_the_best_model_is_that_of_the_tasks_score():
    scores = {
        "a": {"mean_average_precision": 0.5},
        "b": {"mean_average_precision": 0.7},
        "c": {"accuracy": 0.9},
    }
    for name, of_model in scores.items():
        report_folder(name).mkdir(parents=True)
        (report_folder(name) / "metrics.json").write_text(json.dumps({"validation": of_model}))
    assert (best_model("abcd", Multi), best_model("abcd", Single), best_model("d", Multi)) == ("b", "c", None)


@pytest.mark.parametrize(
    ("header", "row", "expected"),
    [
        (
            "name,cat,dog,sex",
            lambda n: f"{int(n % 2)},{int(n % 3 == 0)},{'mf'[n % 5 % 2]}",
            {"labels": ["cat", "dog"]},
        ),
        ("name,tags", lambda n: ["cat|dog", "cat", "", "dog"][n % 4], {"label": "tags", "separator": "|"}),
        ("name,labels", lambda n: ['"cat, dog"', "cat", "dog"][n % 3], {"label": "labels", "separator": ","}),
    ],
)
def test_init_recognises_several_labels_and_writes_why(header, row, expected, monkeypatch, capsys):
    monkeypatch.setattr(command, "this_machine", lambda backend: Machine(2, 16 * 2**30, 200.0))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(Path.cwd().parent))
    lines = "\n".join(f"i{n}.png,{row(n)}" for n in range(40))
    write(f"{header}\n{lines}\n", 40)
    assert main(["init", "project", "--images", "set/labels.csv"]) == 0
    text = Path("project/params.yaml").read_text()
    (line,) = (line for line in text.splitlines() if line.startswith("task:"))
    assert line.startswith(
        "task: multi # single: each image has one class | multi: any number of labels, or none; "
    )
    table = yaml.safe_load(text)["prepare"]["table"]
    assert {key: table.get(key) for key in ("label", "labels", "separator") if key in table} == expected
    params = load_params(Path("project/params.yaml"))
    assert params.task == "multi"
    assert list_source(params.prepare, TASKS[params.task].several).classes == ("cat", "dog")
    assert "40 images in 2 classes" in capsys.readouterr().out
