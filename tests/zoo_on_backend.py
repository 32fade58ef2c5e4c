"""Run by test_zoo.py in a process of its own: KERAS_BACKEND=… python zoo_on_backend.py FOLDER.

FOLDER holds every kind as NUMBER.keras with NUMBER.npz, both made on TensorFlow. For each kind: its logits here, and
those at another image size; then one step of training, its file and its logits after that; then one step in bfloat16.
"""

import os
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from zoo import ZOO

from visionpipe.canonical import save_keras
from visionpipe.models import build_model
from visionpipe.models.surgery import with_image_size

BACKEND = keras.backend.backend()


def trained(model, count=8):
    """After one step."""
    random = np.random.default_rng(2)
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    images = random.integers(0, 256, (count, *model.input.shape[1:])).astype(np.float32)
    assert np.isfinite(model.train_on_batch(images, np.arange(count) % 5))
    return model


def numpy(x):
    return keras.ops.convert_to_numpy(x)


def main(folder):
    for number, (variant, image_size, overrides) in enumerate(ZOO.values()):
        arrays = np.load(folder / f"{number}.npz")
        model = keras.models.load_model(folder / f"{number}.keras")
        found = {
            "logits": numpy(model(arrays["images"])),
            "larger": numpy(
                with_image_size(model, arrays["larger_images"].shape[1:3])(arrays["larger_images"])
            ),
        }
        trained(model)
        save_keras(model, folder / f"{number}.{BACKEND}.keras")
        found["trained"] = numpy(model(arrays["images"]))
        keras.config.set_dtype_policy("mixed_bfloat16")
        half = build_model(variant, 5, image_size, **overrides)
        keras.config.set_dtype_policy("float32")
        logits = trained(half)(arrays["images"])
        assert keras.backend.standardize_dtype(logits.dtype) == "float32"
        assert np.isfinite(numpy(logits)).all()
        assert all(np.isfinite(numpy(weight)).all() for weight in half.weights)
        np.savez(folder / f"{number}.{BACKEND}.npz", **found)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
