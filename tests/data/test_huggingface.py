"""Source `huggingface`: what save_to_disk wrote is read without a network, and what has no single label is refused."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

datasets = pytest.importorskip("datasets")

from visionpipe.commands.download import download  # noqa: E402
from visionpipe.data.config import PrepareConfig, TableConfig  # noqa: E402
from visionpipe.data.decode import decode_image  # noqa: E402
from visionpipe.data.listing import Record, Rejected  # noqa: E402
from visionpipe.data.prepared import PREPARED, open_prepared  # noqa: E402
from visionpipe.data.sources import list_huggingface  # noqa: E402
from visionpipe.errors import ConfigError, DataError  # noqa: E402
from visionpipe.project.params import Params  # noqa: E402
from visionpipe.project.survey import survey  # noqa: E402
from visionpipe.stages.prepare import prepare  # noqa: E402

CLASSES = datasets.ClassLabel(names=["cat", "dog"])


@pytest.fixture(autouse=True)
def _offline(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()


def jpeg(seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (20, 24, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


def made(count=12, label=CLASSES, labels=None, first=0, **columns):
    """A set of images in memory, with further columns as (feature, values)."""
    images = [{"bytes": jpeg(first + n), "path": f"p{n // 3}_{n}.jpg"} for n in range(count)]
    data = {"image": images, "label": labels if labels is not None else [n % 2 for n in range(count)]}
    features = {"image": datasets.Image(), "label": label}
    for name, (feature, values) in columns.items():
        data[name], features[name] = values, feature
    return datasets.Dataset.from_dict(data, features=datasets.Features(features))


def listing(path="set", group=None, **columns):
    table = TableConfig(**columns) if columns else None
    return list_huggingface(PrepareConfig("huggingface", str(path), table=table, group=group))


def test_splits_classes_and_the_bytes_of_the_images_are_those_of_the_set():
    parts = {"train": made(6), "valid": made(4, first=6), "test": made(2, first=10), "unlabelled": made(2)}
    datasets.DatasetDict(parts).save_to_disk("set")
    found = listing()
    assert found.classes == ("cat", "dog")
    assert found.splits == {"train", "validation", "test"}
    assert found.notes == ("set has splits that are not used: unlabelled",)
    entries = list(found.entries)
    assert len(entries) == found.total == 12
    assert [entry.read() for entry in entries] == [jpeg(n) for n in range(12)]
    assert (entries[0].split, entries[0].class_name, entries[0].file) == (
        "train",
        "cat",
        "train/00000000/p0_0.jpg",
    )
    assert entries[6].split == "validation"


def test_a_set_without_splits_is_prepared_with_its_metadata_groups_and_weights():
    words, number = datasets.Value("string"), datasets.Value("float32")
    saved = made(
        60,
        site=(words, [["left", None][n % 2] for n in range(60)]),
        patient=(datasets.Value("int64"), [n // 3 for n in range(60)]),
        weight=(number, [float(n % 3) for n in range(60)]),
        boxes=(datasets.Sequence(number), [[1.0]] * 60),
    )
    saved.save_to_disk("set")
    config = PrepareConfig(
        "huggingface", "set", size=(8, 8), group="patient", table=TableConfig(weight="weight")
    )
    prepare(Params(config, models={}))
    prepared = open_prepared(PREPARED)
    assert prepared.manifest["columns"] == ["site", "patient"]
    assert prepared.manifest["warnings"][0] == "set has columns that are no text and no number: boxes"
    rows = [int(file.split("/")[1]) for file in prepared.files("train")]
    assert prepared.metadata("train") == {
        "site": [["left", ""][row % 2] for row in rows],
        "patient": [str(row // 3) for row in rows],
    }
    np.testing.assert_array_equal(prepared.weights(), np.float32([row % 3 for row in rows]))
    patients = [set(prepared.metadata(split)["patient"]) for split in prepared.splits]
    assert sum(map(len, patients)) == len(set.union(*patients)) == 20
    assert decode_image(jpeg(rows[0])).shape == (20, 24, 3)


def test_labels_may_be_text_or_numbers_and_missing_ones_are_reported():
    made(4, datasets.Value("string"), ["b", "a", "b", None]).save_to_disk("set")
    found = listing()
    assert found.classes == ("a", "b")
    entries = list(found.entries)
    assert [entry.class_name for entry in entries if isinstance(entry, Record)] == ["b", "a", "b"]
    assert entries[3] == Rejected("data/00000003/p1_3.jpg", "has no label")
    made(3, CLASSES, [0, 1, -1]).save_to_disk("other")
    assert [type(entry) for entry in listing("other").entries] == [Record, Record, Rejected]


def test_init_recognises_such_a_folder():
    datasets.DatasetDict({"train": made(12), "test": made(4, first=20)}).save_to_disk("set")
    found = survey(Path("set"))
    assert (found.source, found.splits) == ("huggingface", {"train": 12, "test": 4})


def several():
    made(4, datasets.Sequence(CLASSES), [[0, 1]] * 4).save_to_disk("set")


def two_images():
    made(2, thumbnail=(datasets.Image(), [{"bytes": jpeg(0), "path": None}] * 2)).save_to_disk("set")


def no_training():
    datasets.DatasetDict({"test": made(2), "validation": made(2)}).save_to_disk("set")


def of_the_hub():
    made(2).to_parquet("set/data/train.parquet")


def streamed():
    made(2).save_to_disk("set")
    for file in Path("set").glob("*.arrow"):
        file.unlink()


@pytest.mark.parametrize(
    ("make", "columns", "message"),
    [
        (several, {}, "the column label holds several labels of an image"),
        (
            two_images,
            {},
            "needs a column of images, and has 2 of them: image, thumbnail: name it in prepare.table.file",
        ),
        (no_training, {}, "set has no training split, only test, validation"),
        (of_the_hub, {}, "but files of the Hub: make such a folder with visionpipe download NAME PATH"),
        (streamed, {}, "set has no .arrow file: a streamed set (IterableDataset) holds no images"),
        (
            lambda: made(2).save_to_disk("set"),
            {"label": "lable"},
            "has no column 'lable' (did you mean 'label'?)",
        ),
    ],
)
def test_what_cannot_be_read_is_one_line_with_its_reason(make, columns, message):
    make()
    with pytest.raises(DataError) as caught:
        listing(**columns)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_column_of_the_images_can_be_named():
    two_images()
    assert len(list(listing(file="thumbnail").entries)) == 2


def test_a_download_without_a_network_is_one_line_and_leaves_nothing(tmp_path):
    with pytest.raises(DataError, match=r"nobody/nothing cannot be downloaded: "):
        download("nobody/nothing", tmp_path / "set")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "set").mkdir()
    with pytest.raises(ConfigError, match="exists: name a new folder"):
        download("nobody/nothing", tmp_path / "set")
