"""Source `table`: what spreadsheets, databases and pandas write is read, and every row is an image or has a reason."""

import zipfile
from pathlib import Path

import pandas as pd
import pytest

from visionpipe.data.config import PrepareConfig, TableConfig
from visionpipe.data.listing import Record, Rejected
from visionpipe.data.sources import list_table
from visionpipe.errors import DataError


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def write(table, *images, name="labels.csv", root="set", **contents):
    """Writes a table, as text or bytes, and its images; `contents` are further files."""
    files = {name: table.encode() if isinstance(table, str) else table, **contents}
    files |= {image: image.encode() for image in images}
    for path, content in files.items():
        file = Path(root, path)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    return Path(root)


def listing(folder="set", /, group=None, **columns):
    return list_table(PrepareConfig("table", str(folder), table=TableConfig(**columns), group=group))


def labels(found):
    return {entry.file: entry.class_name for entry in found.entries if isinstance(entry, Record)}


def refusals(found):
    return {entry.file: entry.reason for entry in found.entries if isinstance(entry, Rejected)}


ROWS = "file,label\r\na.png,cat\r\nb.png,dog\r\n"
SPREADSHEETS = {
    "plain": ROWS,
    "line feeds": ROWS.replace("\r", ""),
    "carriage returns": ROWS.replace("\n", ""),
    "a mark": "\ufeff" + ROWS,
    "UTF-16": ROWS.encode("utf-16"),
    "UTF-16 of the other order": b"\xfe\xff" + ROWS.encode("utf-16-be"),
    "UTF-16 without a mark": ROWS.encode("utf-16-le"),
    "semicolons": ROWS.replace(",", ";"),
    "semicolons with commas in the text": "file;label;note\na.png;cat;one, two, three\nb.png;dog;1,5\n",
    "tabs": ROWS.replace(",", "\t"),
    "bars": ROWS.replace(",", "|"),
    "Excel's first line": "sep=;\r\n" + ROWS.replace(",", ";"),
    "empty lines and columns at the end": "file,label,,\r\na.png,cat,,\r\nb.png,dog,,\r\n,,,\r\n,,,\r\n\r\n",
    "spaces around names": " file , label \na.png , cat\n b.png,dog \n",
    "quotes": '"file","label"\n"a.png","cat"\n"b.png","dog"\n',
    "cells left out at the end": "file,label,note\na.png,cat\nb.png,dog,x\n",
    "an unnamed column of pandas": ",file,label\n0,a.png,cat\n1,b.png,dog\n",
}


@pytest.mark.parametrize("case", SPREADSHEETS)
def test_tables_of_spreadsheets_are_read(case):
    write(SPREADSHEETS[case], "a.png", "b.png")
    found = listing()
    assert labels(found) == {"a.png": "cat", "b.png": "dog"}
    assert refusals(found) == {}
    assert found.classes == ("cat", "dog")


def test_a_text_of_windows_is_read_with_a_note():
    write("file,label\na.png,Müller\nb.png,Größe\n".encode("cp1252"), "a.png", "b.png")
    found = listing()
    assert found.classes == ("Größe", "Müller")
    assert found.notes == ("labels.csv is not UTF-8: read as Windows-1252",)


def test_parquet_and_tsv_and_pandas_agree():
    frame = pd.DataFrame(
        {"file": ["a.png", "b.png"], "label": ["cat", "dog"], "age": [1.0, None], "on": [1, 2]}
    )
    for ending, save in (
        ("csv", lambda path: frame.to_csv(path, index=False)),
        ("tsv", lambda path: frame.to_csv(path, index=False, sep="\t")),
        ("parquet", frame.to_parquet),
    ):
        root = write("", "a.png", "b.png", name=f"labels.{ending}", root=ending)
        save(root / f"labels.{ending}")
        found = listing(ending)
        assert labels(found) == {"a.png": "cat", "b.png": "dog"}
        assert found.columns == ("age", "on")
        assert [entry.metadata for entry in found.entries if isinstance(entry, Record)] == [
            ("1.0", "1"),
            ("", "2"),
        ]


def test_columns_may_have_any_name_and_the_others_are_metadata():
    write("id;dx;age;site;when\na.png;cat;30;x;1\nb.png;dog;40;y;2\n", "a.png", "b.png")
    found = listing(file="id", label="dx")
    assert found.columns == ("age", "site", "when")
    assert found.entries[0].metadata == ("30", "x", "1")
    found = listing(file="id", label="dx", metadata=("when",))
    assert (found.columns, found.entries[1].metadata) == (("when",), ("2",))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"label": "lable"},
            "prepare.table.label: labels.csv has no column 'lable' (did you mean 'label'?); its first",
        ),
        ({"split": "fold"}, "its first line names 'file', 'label'"),
        (
            {"path": "label.csv"},
            "prepare.table.path: there is no label.csv in set (did you mean 'labels.csv'?)",
        ),
        ({"root": "../elsewhere"}, "prepare.table.root: ../elsewhere is not in prepare.path, set"),
        ({"classes": "names.txt"}, "prepare.table.classes: there is no names.txt in set"),
    ],
)
def test_what_params_name_wrongly_is_one_line(columns, message):
    write(ROWS, "a.png", "b.png")
    with pytest.raises(DataError) as caught:
        listing(**columns)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_row_that_cannot_be_used_is_reported_by_its_line():
    table = (
        'file,label,note\n"a.png",cat,"two\r\nlines"\nmissing.png,cat,\nb.png,,\n,dog,\nc.png,dog,\nc.png,cat,\n'
        "d.png,dog,x\nd.png,dog,y\nhttps://host/e.png,dog,\n../f.png,dog,\n/elsewhere/g.png,dog,\nh.png,dog,a,b\n"
    )
    write(table, "a.png", "b.png", "c.png", "d.png", "h.png", "extra.png", "Thumbs.db")
    found = listing()
    assert labels(found) == {"a.png": "cat", "d.png": "dog"}
    assert refusals(found) == {
        "missing.png": "line 4 of labels.csv: no such file",
        "b.png": "line 5 of labels.csv: no label",
        "labels.csv": "line 6 of labels.csv: no file",
        "c.png": "two labels in labels.csv: 'dog' on line 7, 'cat' on line 8",
        "https://host/e.png": "line 11 of labels.csv: an address: download the images, and name the files",
        "../f.png": "line 12 of labels.csv: leads out of set",
        "/elsewhere/g.png": "line 13 of labels.csv: not below set",
        "h.png": "line 14 of labels.csv: 4 cells, but the table has 3 columns",
        "extra.png": "not in labels.csv",
        "Thumbs.db": "hidden or system file",
    }
    assert found.total == len(found.entries) == 12
    assert found.notes == (
        "files that labels.csv lists more than once, of which the first row counts: 1, such as 'd.png' on line 9 and "
        "line 10",
    )


def test_files_are_found_by_what_people_write(tmp_path):
    names = [
        "img/A 1",
        "img\\b.JPG",
        str(tmp_path / "set/img/c.png"),
        "C:\\Users\\x\\img\\d.png",
        "/home/x/img/e.png",
    ]
    table = "file,label\n" + "".join(f'"{name}",{index % 2}\n' for index, name in enumerate(names))
    write(table, "img/A 1.png", "img/b.jpg", "img/c.png", "img/d.png", "img/e.png")
    found = listing()
    assert sorted(labels(found)) == ["img/A 1.png", "img/b.jpg", "img/c.png", "img/d.png", "img/e.png"]
    assert [note.split(":")[0] for note in found.notes] == [
        "names without the extension of the file",
        "names in another case or Unicode form than the file",
        "absolute paths of another place, of which the end names a file here",
    ]
    write("file,label\nx,a\ny.png,b\nz.png,a\n", "x.png", "x.jpg", "y.png", "z.png", root="other")
    assert refusals(listing("other"))["x"] == "line 2 of labels.csv: may be any of x.jpg, x.png"


def test_files_are_relative_to_the_table_or_to_root():
    write("file,label\na.png,cat\nb.png,dog\n", "deep/a.png", "deep/b.png", name="deep/labels.csv")
    assert len(labels(listing(path="deep/labels.csv"))) == 2
    write(ROWS, "img/a.png", "img/b.png", root="other")
    assert len(labels(listing("other", root="img"))) == 2
    assert len(labels(listing("other", root=str(Path("other/img").resolve())))) == 2
    with pytest.raises(DataError, match=r"but in its folder img: set prepare.table.root: img"):
        listing("other")


def test_a_zip_archive_holds_the_table_and_the_images():
    with zipfile.ZipFile("set.zip", "w") as archive:
        for name, content in {"labels.csv": ROWS, "a.png": "a", "b.png": "b"}.items():
            archive.writestr(name, content)
    found = listing("set.zip")
    assert labels(found) == {"a.png": "cat", "b.png": "dog"}
    assert [entry.read() for entry in found.entries if isinstance(entry, Record)] == [b"a", b"b"]


def test_links_out_of_the_folder_are_refused():
    Path("secret.png").write_bytes(b"secret")
    write(ROWS + "c.png,cat\r\n", "b.png", "c.png")
    Path("set/a.png").symlink_to(Path("secret.png").resolve())
    assert refusals(listing())["a.png"] == "line 2 of labels.csv: symbolic link that leaves the folder"


CLASSES = {
    "lines of Windows": ("c.txt", "\ufeffcat\r\ndog\r\n\r\n"),
    "a JSON list": ("c.json", '["cat", "dog"]'),
    "a JSON mapping": ("c.json", '{"1": "dog", "0": "cat"}'),
    "a YAML mapping of names": ("c.yaml", "dog: 1\ncat: 0\n"),
}


@pytest.mark.parametrize("case", CLASSES)
def test_numbers_are_named_by_a_file_of_classes(case):
    name, text = CLASSES[case]
    write("file,label\na.png,0\nb.png,1\nc.png,2\n", "a.png", "b.png", "c.png", **{name: text.encode()})
    found = listing(classes=name)
    assert labels(found) == {"a.png": "cat", "b.png": "dog"}
    assert refusals(found)["c.png"] == (
        "line 4 of labels.csv: the label 2 is none of the 2 classes, which count from 0"
    )


def test_labels_that_count_from_1_never_take_the_name_of_their_neighbour():
    write("file,label\na.png,1\nb.png,2\n", "a.png", "b.png", **{"c.txt": b"cat\ndog\n"})
    with pytest.raises(
        DataError, match=r"the labels count from 1, the 2 names of prepare.table.classes from 0"
    ):
        listing(classes="c.txt")


def test_numbers_without_names_are_names_in_their_order():
    write("file,label\na.png,10\nb.png,9.0\nc.png,nan\nd.png,2\n", "a.png", "b.png", "c.png", "d.png")
    found = listing()
    assert found.classes == ("2", "9", "10")
    assert labels(found) == {"a.png": "10", "b.png": "9", "d.png": "2"}
    assert refusals(found) == {"c.png": "line 4 of labels.csv: no label"}
    assert "9.0 is read as 9" in found.notes[0]


def test_spellings_of_a_label_are_one_class_with_a_note():
    write("file,label\na.png,Cat\nb.png,cat\nc.png,dog\n", "a.png", "b.png", "c.png")
    found = listing()
    assert found.classes == ("Cat", "dog")
    assert found.notes[0].startswith("labels 'Cat', 'cat' are one class")


def test_splits_have_the_usual_names_and_others_are_refused():
    write(
        "file,label,set\na.png,x,Train\nb.png,y,VAL\nc.png,x,test\nd.png,y,\n", *(f"{n}.png" for n in "abcd")
    )
    found = listing(split="set")
    assert [entry.split for entry in found.entries] == ["train", "validation", "test", None]
    assert found.notes == ("rows of labels.csv without a split, whose images are training images: 1",)
    write("file,label,set\na.png,x,train\nb.png,y,third\n", "a.png", "b.png", root="other")
    with pytest.raises(DataError, match=r"prepare.table.split: labels.csv, line 3: 'third' is no split"):
        listing("other", split="set")


def test_weights_are_numbers_of_at_least_0():
    write(
        "file;label;w\na.png;x;0,5\nb.png;y;\nc.png;x;-1\nd.png;x;inf\ne.png;y;much\n",
        *(f"{n}.png" for n in "abcde"),
    )
    found = listing(weight="w")
    assert [entry.weight for entry in found.entries if isinstance(entry, Record)] == [0.5, 1.0]
    assert refusals(found)["c.png"] == "line 4 of labels.csv: the weight '-1' is not a number of at least 0"
    assert len(refusals(found)) == 3


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("", "is empty: its first line must name the columns"),
        ("file,label\n", "has no rows below its first line"),
        ("file,label\na.png,cat\n", "the column 'label' of labels.csv holds only the class 'cat'"),
        ('file,label\na.png,cat\nb.png,"dog\n', "line 3: a quoted cell is never closed"),
        (b"PK\x03\x04workbook", "is a workbook: save the sheet as CSV"),
        (b"PAR1 damaged", "is a damaged Parquet file"),
    ],
)
def test_what_is_no_table_is_one_line(table, message):
    write(table, "a.png")
    with pytest.raises(DataError) as caught:
        listing()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_path_that_is_the_table_itself_is_refused_because_dvc_would_not_watch_the_images():
    write(ROWS, "a.png", "b.png")
    with pytest.raises(
        DataError, match=r"set prepare.path to the folder that holds the table and the images"
    ):
        listing("set/labels.csv")
