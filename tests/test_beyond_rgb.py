"""Images beyond 8-bit RGB all the way: prepared, trained, exported, evaluated, and predicted from the same files."""

import csv
import json

import numpy as np
import pytest
import yaml
from deep_images import dicom, npy, png16
from repository import CHECKOUT, copy_checkout

from visionpipe.api import load
from visionpipe.errors import ConfigError
from visionpipe.project.params import load_params

CLASSES = [f"class{number}" for number in range(8)]
HOUNSFIELD = {"RescaleSlope": 1, "RescaleIntercept": -1024, "WindowCenter": 1000, "WindowWidth": 3000}


def levels(number, random, channels):
    """Noise in the lowest levels, with one bright part (in one channel, if there are several) for each class."""
    image = random.integers(0, 2000, (20, 20, channels), np.uint16)
    row, column = divmod(number, 4)
    if channels > 1:
        image[10 * row : 10 * row + 10, :, column] += 30_000
    else:
        image[10 * row : 10 * row + 10, 5 * column : 5 * column + 5] += 50_000
    return image


def written(kind, image):
    """The name's ending, and the content of a file."""
    if kind == "npy":
        return ".npy", npy(image)
    if kind == "png":
        return ".png", png16(image)
    return "", dicom(image[..., 0] >> 4, bits=12, **HOUNSFIELD)


@pytest.mark.parametrize(
    ("kind", "channels", "backend"),
    [
        pytest.param("png", 1, "tensorflow", marks=pytest.mark.slow),
        pytest.param("npy", 5, "torch", marks=pytest.mark.rare),
        pytest.param("dicom", 1, "jax", marks=pytest.mark.rare),
    ],
)
def test_deep_images_go_all_the_way(kind, channels, backend, tmp_path):
    project = copy_checkout(tmp_path)
    random = np.random.default_rng(0)
    for number, name in enumerate(CLASSES):
        (tmp_path / "images" / name).mkdir(parents=True)
        for index in range(20):
            ending, content = written(kind, levels(number, random, channels))
            (tmp_path / "images" / name / f"{index}{ending}").write_bytes(content)
    params = project.params()
    prepare = {"source": "folder", "path": "images", "size": [16, 16], "channels": channels, "depth": 16}
    params |= {"backend": backend, "threads": 1, "prepare": params["prepare"] | prepare}
    model = {"needs": "data/prepared/manifest.json", "variant": "ResNet-8", "overrides": {"filters": 8}}
    params["models"] = {"small": model | {"train": {}}}
    params["train"] |= {"epochs": 10, "batch_size": 16, "learning_rate": 0.01}
    params["train"]["augmentation"] = [{"name": "crop", "padding": 1}, {"name": "erasing"}, {"name": "mixup"}]
    project.write_params(params)
    said = project.visionpipe("prepare").stdout
    counted = "1 channel" if channels == 1 else f"{channels} channels"
    assert f"8 classes, 16 × 16 pixels, {counted} of 16 bits" in said
    for stage in ("train", "export", "evaluate"):
        project.visionpipe(stage, "small")
    metrics = json.loads((tmp_path / "reports/small/metrics.json").read_text())
    assert metrics["test"]["accuracy"] > 0.7
    parity = json.loads((tmp_path / "artifacts/small/parity.json").read_text())
    assert parity["relative_logit_difference"] < 1e-4
    if kind == "npy":
        project.visionpipe("preview")

    project.visionpipe("predict", "images", "--model", "artifacts/small", "--output", "answers.csv")
    with (tmp_path / "answers.csv").open() as file:
        answers = {row["file"]: row for row in csv.DictReader(file)}
    assert len(answers) == 160
    with (tmp_path / "reports/small/predictions.csv").open() as file:
        for row in csv.DictReader(file):
            answer = answers[f"images/{row['file']}"]
            assert answer["label"] == row["predicted"]
            assert abs(float(answer["probability"]) - float(row["confidence"])) < 1e-5
    predictor = load(tmp_path / "artifacts/small")
    file = next((tmp_path / "images/class3").iterdir())
    if kind != "dicom":
        assert predictor.predict(levels(3, random, channels)).label == predictor.predict(file).label
    colours = np.full((20, 20, 3), 200, np.uint8)
    if channels == 1:  # a picture becomes grey
        assert predictor.predict(colours) == predictor.predict(colours[..., 0])


@pytest.mark.parametrize("name", ["rand_augment", "color_jitter"])
def test_augmentations_of_8_bit_colours_are_refused_for_other_images(name, tmp_path):
    content = yaml.safe_load((CHECKOUT / "params.yaml").read_text())
    content["train"]["augmentation"] = [{"name": "flip"}, {"name": name}]
    file = tmp_path / "params.yaml"
    for form in ({}, {"channels": 1}, {"depth": 16}):
        content["prepare"] |= form
        file.write_text(yaml.safe_dump(content))
        if not form:
            load_params(file)
            continue
        with pytest.raises(ConfigError, match=rf"augmentation\[1\].name: {name} changes 8-bit RGB colours"):
            load_params(file)


def test_means_are_given_for_each_channel(tmp_path):
    content = yaml.safe_load((CHECKOUT / "params.yaml").read_text())
    content["prepare"]["channels"] = 2
    file = tmp_path / "params.yaml"
    content["models"]["vit"]["pixel_mean"] = [1.0, 2.0]
    file.write_text(yaml.safe_dump(content))
    assert load_params(file).models["vit"].pixel_mean == (1, 2)
    content["models"]["vit"]["pixel_mean"] = [1.0, 2.0, 3.0]
    file.write_text(yaml.safe_dump(content))
    with pytest.raises(
        ConfigError, match=r"models.vit.pixel_mean: expected a list of 2, received \[1.0, 2.0"
    ):
        load_params(file)
