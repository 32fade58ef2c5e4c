"""The doctor: faults that were put into a small set are found, clean pictures are left alone, the page is harmless."""

import csv
import html.parser
import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from visionpipe.commands.doctor import doctor
from visionpipe.data.config import PrepareConfig
from visionpipe.data.measures import jpeg_quality, quantisation
from visionpipe.data.prepared import PREPARED, SPLITS, open_prepared
from visionpipe.doctor.drift import distance
from visionpipe.doctor.labels import (
    Predictions,
    confidently_wrong,
    folds,
    indistinguishable,
    predict_out_of_fold,
)
from visionpipe.doctor.page import LARGEST, least_difference
from visionpipe.doctor.quality import find_quality
from visionpipe.doctor.shortcuts import (
    by_majority,
    class_scores,
    column_shortcuts,
    metadata_shortcuts,
    name_shortcuts,
)
from visionpipe.errors import DataError
from visionpipe.project.params import Params
from visionpipe.project.sections import GateConfig, ModelConfig
from visionpipe.stages.prepare import prepare
from visionpipe.tracking.receipt import data_failures

HOSTILE = "<img src=x onerror=alert(1)>\"&'.png"


def drawing(name: str, seed: int, side: int = 32) -> Image.Image:
    """A bright shape of a random place, size and grey level before a dark, uneven ground."""
    random = np.random.default_rng([seed, len(name)])
    ground = Image.fromarray(random.integers(0, 70, (5, 5, 3), dtype=np.uint8)).resize(
        (side, side), Image.Resampling.BICUBIC
    )
    pen, colour = ImageDraw.Draw(ground), tuple(random.integers(130, 256, 3).tolist())
    x, y = random.integers(5, 9, 2).tolist()
    far = side - int(random.integers(8, 12))
    if name == "disc":
        pen.ellipse((x, y, far, far), fill=colour)
    elif name == "bar":
        pen.rectangle((x, y + 7, far + 2, y + 11), fill=colour)
    else:
        pen.line((x, y, far, far, x, far), fill=colour, width=3)
    return ground


def encoded(picture: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def clean_set(count: int = 40) -> dict[str, bytes]:
    return {
        f"{name}/{seed:03}.png": encoded(drawing(name, seed))
        for name in ("bar", "disc", "hook")
        for seed in range(count)
    }


def prepared(files: dict[str, bytes], **keys) -> tuple[Params, dict]:
    with zipfile.ZipFile("images.zip", "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    params = Params(
        prepare=PrepareConfig(source="zip", path="images.zip", size=(32, 32), **keys),
        models={"resnet": ModelConfig(variant="ResNet-14", needs="")},
        threads=1,
    )
    prepare(params)
    return params, open_prepared(PREPARED).manifest


def diagnosed(params: Params) -> dict[str, dict]:
    doctor(params)
    findings = json.loads(Path(".visionpipe/doctor/doctor.json").read_text(encoding="utf-8"))["findings"]
    return {finding["key"]: finding for finding in findings}


def files_of(finding: dict) -> set[str]:
    return {image["file"] for item in finding["items"] for image in item["images"] if "suggestion" in image}


@pytest.fixture(autouse=True)
def _in_an_empty_project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    (tmp_path / ".dvc").mkdir()


def test_clean_pictures_have_no_copies_shortcuts_bad_pictures_or_drift(capsys):
    params, manifest = prepared(clean_set())
    assert manifest["findings"]["copies"]["images"] == manifest["findings"]["shortcuts"]["largest"] == 0
    assert set(diagnosed(params)) <= {"label", "outlier"}
    assert "WARNING" not in capsys.readouterr().out


def test_injected_faults_are_found_and_named():
    files = clean_set()
    flipped = [f"{name}/{seed:03}.png" for name in ("bar", "disc", "hook") for seed in (1, 2)]
    for name in flipped:
        other = {"bar": "disc", "disc": "hook", "hook": "bar"}[name.split("/")[0]]
        files[f"{other}/of-{name.replace('/', '-')}"] = files.pop(name)
    files["disc/again.png"] = files["disc/010.png"]
    files["bar/other label.png"] = encoded(drawing("hook", 12), "JPEG", quality=80)
    files["bar/blank.png"] = encoded(Image.new("RGB", (32, 32), (90, 90, 90)))
    files["bar/wide.png"] = encoded(drawing("bar", 77).resize((300, 32)))
    files["hook/soft.png"] = encoded(drawing("hook", 78).filter(ImageFilter.GaussianBlur(6)))
    found = diagnosed(prepared(files)[0])
    moved = {name for name in files if "/of-" in name}
    assert len(moved & files_of(found["label"])) >= 5
    assert set(next(iter(found["label"]["items"]))["images"][0]) == {"file", "split", "label", "suggestion"}
    conflict = {image["file"] for item in found["label-conflict"]["items"] for image in item["images"]}
    assert conflict == {"bar/other label.png", "hook/012.png"}
    copies = {
        image["file"]
        for key in ("copy", "leak")
        for item in found.get(key, {"items": []})["items"]
        for image in item["images"]
    }
    assert copies == {"disc/again.png", "disc/010.png"}
    quality = {item["note"].split(":")[0]: item["images"][0]["file"] for item in found["quality"]["items"]}
    assert quality["blank"] == "bar/blank.png"
    assert quality["odd ratio"] == "bar/wide.png"
    assert quality["blurred"] == "hook/soft.png"


def test_a_patch_in_one_corner_is_named_with_its_class_and_its_corner():
    files = clean_set(60)
    for seed in range(60):
        if seed % 10:
            picture = drawing("disc", seed)
            picture.paste((250, 250, 250), (28, 0, 32, 4))
            files[f"disc/{seed:03}.png"] = encoded(picture)
    (item,) = diagnosed(prepared(files)[0])["shortcut"]["items"]
    assert item["note"].startswith("the top right corner recognises 'disc' with an F1 of 0.")


def test_a_border_is_named_with_its_colour():
    files = clean_set(30)
    for seed in range(30):
        picture = drawing("disc", seed)
        ImageDraw.Draw(picture).rectangle((0, 0, 31, 31), outline=(255, 0, 0), width=4)
        files[f"disc/{seed:03}.png"] = encoded(picture)
    (item,) = diagnosed(prepared(files)[0])["shortcut"]["items"]
    assert item["note"].startswith("the border recognises 'disc' with an F1 of ")
    assert "its median is RGB (255, 0, 0) in the class, (" in item["note"]


@pytest.mark.parametrize("quality", [20, 49, 50, 75, 92, 100])
def test_the_quality_of_a_jpeg_file_is_the_one_it_was_written_with(quality):
    measured = quantisation(encoded(drawing("disc", 1), "JPEG", quality=quality))
    (found,) = jpeg_quality(np.array([measured]))
    assert found == pytest.approx(quality, abs=2)
    assert jpeg_quality(np.array([quantisation(encoded(drawing("disc", 1)))])) == [0]


def test_a_class_of_other_files_is_named_by_their_format():
    files = {
        f"{name}/{seed:03}": encoded(drawing(name, seed), "PNG" if name == "disc" else "JPEG")
        for name in ("bar", "disc", "hook")
        for seed in range(40)
    }
    warnings = prepared(files)[1]["warnings"]
    assert any("100% of the class are PNG files, 0% of the other images" in warning for warning in warnings)


def test_copies_of_a_given_test_split_are_to_be_dropped_from_training_and_prepare_obeys():
    pictures = clean_set(20)
    files = {f"{'test' if seed % 4 == 0 else 'train'}/{name}": pictures[name]
             for name in pictures for seed in [int(name[-7:-4])]}  # fmt: skip
    files["train/disc/again.jpg"] = encoded(drawing("disc", 4), "JPEG", quality=90)
    params, manifest = prepared(files, duplicates="keep")
    assert any("set prepare.duplicates to drop, or run" in warning for warning in manifest["warnings"])
    (item,) = diagnosed(params)["leak"]["items"]
    assert [(image["file"], image.get("suggestion")) for image in item["images"]] == [
        ("test/disc/004.png", None),
        ("train/disc/again.jpg", ""),
    ]
    text = Path("decisions.csv").read_text(encoding="utf-8")
    row = "train/disc/again.jpg,leak,,"
    Path("decisions.csv").write_text(text.replace(row, row + "drop"), encoding="utf-8")
    doctor(params)
    assert "decided: drop" in Path(".visionpipe/doctor/index.html").read_text(encoding="utf-8")
    prepare(params)
    assert "leak" not in diagnosed(params)


def test_the_suggested_group_draws_copies_into_one_split():
    files = clean_set(20)
    for seed in range(6):
        files[f"disc/copy {seed}.jpg"] = encoded(drawing("disc", seed), "JPEG", quality=85)
    params, manifest = prepared(files)
    assert leaks(manifest) > 0
    doctor(params)
    lines = Path("decisions.csv").read_text(encoding="utf-8").splitlines()
    decided = [f"{line}group" if ",leak,copies-" in line else line for line in lines]
    Path("decisions.csv").write_text("\n".join(decided) + "\n", encoding="utf-8")
    prepare(params)
    assert leaks(open_prepared(PREPARED).manifest) == 0


def test_the_difference_of_a_mirrored_or_turned_copy_is_none():
    picture = np.asarray(drawing("hook", 3))
    for copy in (picture, picture[:, ::-1], picture[::-1], np.rot90(picture), np.rot90(picture[:, ::-1])):
        assert (least_difference(picture, copy) == 255).all()
    assert least_difference(picture, np.asarray(drawing("bar", 4))).min() < 100
    wide = picture[:16]
    assert (least_difference(wide, wide[::-1]) == 255).all()


def test_a_class_of_another_compression_is_a_warning_of_prepare_and_a_score_in_the_manifest(capsys):
    files = {
        f"{name}/{seed:03}.jpg": encoded(drawing(name, seed), "JPEG", quality=60 if name == "disc" else 90)
        for name in ("bar", "disc", "hook")
        for seed in range(40)
    }
    _, manifest = prepared(files)
    assert (
        "the JPEG quality alone recognises the class 'disc' with an F1 of 1.00 (chance"
        in capsys.readouterr().out
    )
    assert manifest["findings"]["shortcuts"]["largest"] == 1


def test_images_of_one_channel_and_sixteen_bits_are_looked_at_too():
    files = {}
    for name, data in clean_set(10).items():
        levels = np.asarray(Image.open(io.BytesIO(data)).convert("L")).astype(np.uint16) * 16
        files[name] = encoded(Image.fromarray(levels))
    files["disc/again.png"] = files["disc/003.png"]
    found = diagnosed(prepared(files, channels=1, depth=16)[0])
    assert sum(found[key]["count"] for key in ("copy", "leak") if key in found) >= 1


def test_rows_without_a_decision_are_added_once_and_decided_rows_stay(capsys):
    files = clean_set()
    files["disc/again.png"] = files["disc/010.png"]
    params, _ = prepared(files)
    doctor(params)
    first = Path("decisions.csv").read_text(encoding="utf-8")
    rows = list(csv.DictReader(io.StringIO(first)))
    assert rows
    assert not any(row["decision"] for row in rows)
    decided = first.replace(rows[0]["suggestion"] + ",\n", rows[0]["suggestion"] + ",keep\n", 1)
    Path("decisions.csv").write_text(decided, encoding="utf-8")
    assert "decided" not in capsys.readouterr().out.replace("without a decision", "")
    doctor(params)
    assert Path("decisions.csv").read_text(encoding="utf-8") == decided
    assert ", 1 decided\n" in capsys.readouterr().out


def test_two_looks_write_the_same_bytes_and_the_second_uses_what_the_first_computed():
    params, _ = prepared(clean_set(20))
    folder = Path(".visionpipe/doctor")
    doctor(params)
    written = {path.name: path.read_bytes() for path in folder.iterdir()}
    Path("decisions.csv").unlink(missing_ok=True)
    times = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.npy")}
    doctor(params)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == written
    assert {path.name: path.stat().st_mtime_ns for path in folder.glob("*.npy")} == times


class Elements(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))


def test_the_page_escapes_names_loads_nothing_and_runs_nothing():
    files = {
        f"<b>{name}/{HOSTILE[:-4]}{i}.png": data
        for i, (path, data) in enumerate(clean_set(12).items())
        for name in [path.split("/")[0]]
    }
    files["<b>disc/\u202eagain.png"] = next(
        data for name, data in files.items() if name.startswith("<b>disc")
    )
    doctor(prepared(files)[0])
    page = Path(".visionpipe/doctor/index.html").read_text(encoding="utf-8")
    elements = Elements()
    elements.feed(page)
    tags = {tag for tag, _ in elements.found}
    assert not tags & {"script", "link", "iframe", "b2", "object", "form"}
    assert all(
        attributes["src"].startswith("data:image/") for tag, attributes in elements.found if tag == "img"
    )
    assert not any(name.startswith("on") for _, attributes in elements.found for name in attributes)
    policy = next(attributes["content"] for _, attributes in elements.found if "http-equiv" in attributes)
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "\u202e" not in page
    assert "&lt;b&gt;disc" in page


def test_data_of_an_older_version_are_refused_with_advice():
    params, manifest = prepared(clean_set(8))
    for split in SPLITS:
        (PREPARED / f"measures-{split}.npz").unlink()
        del manifest["sha256"][f"measures-{split}.npz"]
    (PREPARED / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(
        DataError, match=r"older version and has no measures-train\.npz: run dvc repro --force prepare"
    ):
        doctor(params)


# prepare.duplicates ---------------------------------------------------------------------------------------


def with_copies() -> dict[str, bytes]:
    files = clean_set(20)
    for seed in range(6):
        files[f"disc/copy {seed}.jpg"] = encoded(drawing("disc", seed), "JPEG", quality=85)
    files["hook/disc 7.jpg"] = encoded(drawing("disc", 7), "JPEG", quality=85)
    return files


def leaks(manifest: dict) -> int:
    return sum(manifest["findings"]["copies"]["leaking"].values())


def test_keep_draws_copies_into_one_split():
    assert leaks(prepared(with_copies())[1]) > 0
    manifest = prepared(with_copies(), duplicates="keep")[1]
    assert leaks(manifest) == 0
    assert manifest["kept"] == 67
    assert manifest["findings"]["copies"]["images"] == 14


def test_drop_keeps_one_of_each_and_none_of_two_labels():
    manifest = prepared(with_copies(), duplicates="drop")[1]
    reasons = {row["path"]: row["reason"] for row in manifest["quarantined"]}
    assert reasons == {f"disc/copy {seed}.jpg": f"a copy of 'disc/{seed:03}.png'" for seed in range(6)} | {
        "disc/007.png": "a copy of 'hook/disc 7.jpg', which is in another class",
        "hook/disc 7.jpg": "a copy of 'disc/007.png', which is in another class",
    }
    assert manifest["findings"]["copies"]["images"] == 0


def test_error_stops_and_names_two_files():
    with pytest.raises(
        DataError, match=r"14 images are copies of each other, such as 'disc/000\.png' and 'disc/copy 0\.jpg'"
    ):
        prepared(with_copies(), duplicates="error")


def test_the_measures_are_no_part_of_the_identity_and_repeat_to_the_byte():
    _, first = prepared(clean_set(12))
    stored = {path.name: path.read_bytes() for path in PREPARED.iterdir()}
    _, second = prepared(clean_set(12))
    assert {path.name: path.read_bytes() for path in PREPARED.iterdir()} == stored
    assert "measures-train.npz" in second["sha256"]
    arrays = {name for name in first["sha256"] if name.endswith(".npy")}
    assert arrays == {f"{kind}-{split}.npy" for kind in ("images", "labels") for split in SPLITS}


# Closed forms ---------------------------------------------------------------------------------------------


def test_confident_learning_by_hand():
    labels = np.array([0, 0, 0, 1, 1, 1])
    given = np.array([0.9, 0.8, 0.1, 0.9, 0.7, 0.45])
    shares = np.sort(np.stack([given, 1 - given], axis=1), axis=1)[:, ::-1]
    best = np.where(
        (given >= 0.5)[:, None],
        np.stack([labels, 1 - labels], axis=1),
        np.stack([1 - labels, labels], axis=1),
    )
    predictions = Predictions(given, best, shares, np.ones(6))
    # The thresholds are 0.6 and 0.683: the last image's 0.55 of class 0 is not enough.
    assert confidently_wrong(predictions, labels, 2).tolist() == [False, False, True, False, False, False]
    assert predictions.margin(labels).tolist() == pytest.approx([0.8, 0.6, -0.8, 0.8, 0.4, -0.1])
    assert indistinguishable(predictions, labels, 2) == [(0, 1, 0.3333)]


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_predictions_are_probabilities_and_out_of_fold(classes):
    random = np.random.default_rng(0)
    labels = np.repeat(np.arange(classes), 30)
    features = random.normal(0, 1, (len(labels), 4)).astype(np.float32)
    features[np.arange(len(labels)), labels % 4] += 4
    wrong = labels.copy()
    wrong[0] = 1
    found = predict_out_of_fold(features, wrong, classes)
    assert found.best[0, 0] == 0 or classes > 4
    assert (found.shares.sum(axis=1) <= 1 + 1e-6).all()
    assert (np.diff(found.shares, axis=1) <= 0).all()
    random_labels = random.integers(0, classes, len(labels))
    chance = predict_out_of_fold(
        random.normal(0, 1, features.shape).astype(np.float32), random_labels, classes
    )
    assert (chance.best[:, 0] == random_labels).mean() < 1.6 / classes
    assert np.bincount(folds(labels)).max() - np.bincount(folds(labels)).min() <= 1


def test_scores_of_shortcuts_by_hand():
    labels = np.repeat([0, 1], [20, 60])
    codes = np.repeat([5, 2], [20, 60])
    assert by_majority(codes, labels, 2).tolist() == labels.tolist()
    score, f1, chance, hits = class_scores(np.ones(80, np.int64), labels, 2)
    assert (score.tolist(), hits.tolist()) == ([0, 0], [0, 60])
    assert f1 == pytest.approx([0, 120 / 140])
    assert chance == pytest.approx([0.4, 2 * 0.75 / 1.75])


def test_file_names_count_unless_they_name_the_class():
    labels = np.repeat([0, 1], 40)
    cameras = [f"a/{'IMG' if label == 0 else 'DSC'}_{i:04}.jpg" for i, label in enumerate(labels)]
    (first, _) = name_shortcuts(cameras, labels, ["cat", "dog"])
    assert (first.score, first.detail) == (1, "100% of its names begin with 'img'")
    assert (
        name_shortcuts(
            [f"{'cat' if label == 0 else 'dog'}_{i}.jpg" for i, label in enumerate(labels)],
            labels,
            ["cat", "dog"],
        )
        == []
    )
    assert name_shortcuts([f"{i:05}.jpg" for i in range(80)], labels, ["cat", "dog"]) == []


def test_a_column_that_gives_a_class_away_is_named_with_its_value():
    random = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], 60)
    columns = {
        "camera": ["Nikon" if label == 1 and n % 12 else "" for n, label in enumerate(labels)],
        "age": [f"{40 * (label == 2) + 30 * random.random():.3f}" for label in labels],
        "site": random.choice(["a", "b", "c"], len(labels)).tolist(),
        "patient": [f"{label}-{n // 4}" for n, label in enumerate(labels)],
        "one": ["x"] * len(labels),
    }
    found = {item.class_name: item for item in column_shortcuts(columns, labels, ["cat", "dog", "eel"])}
    assert set(found) == {"dog", "eel"}
    assert (found["dog"].source, found["eel"].source) == ("column 'camera'", "column 'age'")
    assert found["dog"].detail == "92% of the class are 'Nikon', 0% of the other images"
    low, high = found["eel"].detail.split(" are '")[1].split("'")[0].split(" to ")
    assert 39 < float(low) < float(high) < 71
    assert column_shortcuts({}, labels, ["cat", "dog", "eel"]) == []


def test_the_column_of_the_groups_is_no_shortcut():
    pictures = clean_set(20)
    files = {
        f"{name}/{'first' if name == 'disc' else 'other'} {n % 2} {n:03}.png": pictures[f"{name}/{n:03}.png"]
        for name in ("bar", "disc", "hook")
        for n in range(20)
    }
    params, manifest = prepared(files, group=r"/(\w+ \d) ")
    assert manifest["columns"] == ["group"]
    assert "metadata" not in diagnosed(params)


def test_constant_metadata_give_nothing_away():
    labels = np.repeat([0, 1, 2], 30)
    same = np.full(90, 28)
    measures = dict.fromkeys(("height", "width", "format"), same) | {"quantisation": same * 1.0}
    assert metadata_shortcuts(measures, labels, ["a", "b", "c"]) == ([], 0)


def test_a_set_of_night_scenes_is_not_dark_and_one_dark_picture_among_bright_ones_is():
    random = np.random.default_rng(0)
    measures = {
        "brightness": random.uniform(5, 15, 100),
        "contrast": random.uniform(8, 20, 100),
        "sharpness": random.uniform(80, 120, 100),
        "height": np.full(100, 60),
        "width": np.full(100, 90),
    }
    assert find_quality(measures) == {}
    bright = measures | {"brightness": np.concatenate([random.uniform(90, 140, 99), [4]])}
    assert {kind: rows.tolist() for kind, rows in find_quality(bright).items()} == {"dark": [99]}


def test_the_distance_of_distributions_by_hand():
    assert distance(np.arange(10), np.arange(10)) == 0
    assert distance(np.arange(10), np.arange(10) + 100) == 1
    assert distance(np.array([1, 2, 3, 4]), np.array([3, 4, 5, 6])) == 0.5


def test_the_gate_refuses_leaks_and_shortcuts_by_number():
    split = {"images": 100, "leaking_images": 3, "shortcut": 0.7}
    metrics = {"validation": split, "test": split | {"leaking_images": 0}}
    assert data_failures(GateConfig(), {"validation": {}, "test": {}}) == []
    assert data_failures(GateConfig(max_leak=0.03, max_shortcut=0.7), metrics) == []
    assert data_failures(GateConfig(max_leak=0, max_shortcut=0.5), metrics) == [
        "3 of 100 validation images have a copy in an earlier split, more than max_leak 0",
        "the files alone give a class away with a score of 0.7000, more than max_shortcut 0.5",
    ]
    assert (
        "dvc repro --force prepare"
        in data_failures(GateConfig(max_leak=0), {"validation": {}, "test": {}})[0]
    )


def test_pictures_on_the_page_are_small():
    from visionpipe.doctor.page import picture

    element = picture(np.zeros((900, 600, 3), np.uint8), "a")
    data = element.split("base64,")[1].split('"')[0]
    import base64

    assert max(Image.open(io.BytesIO(base64.b64decode(data))).size) == LARGEST
