"""Every checkpoint of `visionpipe models`, downloaded: for people with a network and some gigabytes.

    pytest -m weights
    IMAGENET_VALIDATION=folder pytest -m weights

`folder`: ImageNet-1k's validation images in one folder per synset. Five images of each class are judged.
"""

import os

os.environ["KERAS_BACKEND"] = "tensorflow"

import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from visionpipe.models import build_model
from visionpipe.models.known import KNOWN
from visionpipe.weights import Preprocessing, load_weights, resolve
from visionpipe.weights.download import fetch

pytestmark = [pytest.mark.weights, pytest.mark.timeout(3600)]
IMAGENET = Preprocessing((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
TWO_CATS = "http://images.cocodataset.org/val2017/000000039769.jpg"
CATS = {281, 282, 285}  # tabby, tiger cat, Egyptian cat
RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
PER_CLASS = 5


def open_known(name):
    """The model of a row with its weights, and how its images are prepared."""
    row, checkpoint = KNOWN[name], resolve(name)
    found = checkpoint.preprocessing or IMAGENET
    model = build_model(
        row.variant, 1000, row.size, pixel_mean=found.mean, pixel_std=found.std, **row.overrides
    )
    report = load_weights(model, checkpoint)
    assert report.head == "loaded, 1,000 classes"
    return model, found


def prepared(path, size, found):
    """A square crop, as the checkpoint's own evaluation makes it."""
    image = Image.open(path).convert("RGB")
    resampling = RESAMPLING.get(found.interpolation, Image.Resampling.BICUBIC)
    side = round(size / (found.crop_ratio or 0.875))
    factor = side / min(image.size)
    image = image.resize([round(length * factor) for length in image.size], resampling)
    left, top = ((length - size) // 2 for length in image.size)
    return np.asarray(image.crop((left, top, left + size, top + size)))


@pytest.mark.parametrize("name", KNOWN)
def test_a_published_checkpoint_sees_the_cats(name):
    model, found = open_known(name)
    image = prepared(fetch(TWO_CATS), KNOWN[name].size, found)
    assert int(np.asarray(model(image[None])).argmax()) in CATS


@pytest.mark.parametrize("name", [name for name, row in KNOWN.items() if row.accuracy])
def test_a_published_accuracy_is_met(name):
    folder = os.environ.get("IMAGENET_VALIDATION")
    if not folder:
        pytest.skip("IMAGENET_VALIDATION is not set")
    model, found = open_known(name)
    classes = sorted(path for path in Path(folder).iterdir() if path.is_dir())
    assert len(classes) == 1000
    right = []
    for label, path in enumerate(classes):
        files = sorted(path.iterdir())[:PER_CLASS]
        images = np.stack([prepared(file, KNOWN[name].size, found) for file in files])
        right += (np.asarray(model.predict_on_batch(images)).argmax(1) == label).tolist()
    published = KNOWN[name].accuracy / 100
    error = math.sqrt(published * (1 - published) / len(right))
    assert abs(np.mean(right) - published) < 4 * error
