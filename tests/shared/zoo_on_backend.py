"""Runs models that were saved on TensorFlow on another backend; test_zoo.py runs it in a subprocess.

    KERAS_BACKEND=… python zoo_on_backend.py FOLDER STEP

FOLDER has the models of the zoo as NUMBER.keras, and their images as NUMBER.npz. For each STEP-th model it writes the
logits, the logits at another image size, and the file and the logits after one training step. It also trains each model
for one step in bfloat16.
"""

import os
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from zoo import ZOO

import visionpipe.models.layers  # noqa: F401  (registers the layers of the files)
from visionpipe.artifact.canonical import save_keras
from visionpipe.models import build_model
from visionpipe.models.surgery import with_image_size

BACKEND = keras.backend.backend()


def trained(model, count=8):
    """Trains a model for one step, and returns it."""
    random = np.random.default_rng(2)
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    images = random.integers(0, 256, (count, *model.input.shape[1:])).astype(np.float32)
    assert np.isfinite(model.train_on_batch(images, np.arange(count) % 5))
    return model


def answers(model, images):
    """Returns logits from `predict`, which JAX compiles as a whole."""
    return model.predict(images, verbose=0)


def main(folder, step):
    for number, (variant, image_size, overrides) in list(enumerate(ZOO.values()))[::step]:
        arrays = np.load(folder / f"{number}.npz")
        images, larger_images = arrays["images"], arrays["larger_images"]
        model = keras.models.load_model(folder / f"{number}.keras")
        larger = with_image_size(model, larger_images.shape[1:3])
        logits = {"logits": answers(model, images), "larger": answers(larger, larger_images)}
        trained(model)
        assert np.isfinite(answers(larger, larger_images)).all(), "a copy, which does not depend on the model"
        save_keras(model, folder / f"{number}.{BACKEND}.keras")
        logits["trained"] = answers(model, images)
        keras.config.set_dtype_policy("mixed_bfloat16")
        half = build_model(variant, 5, image_size, **overrides)
        keras.config.set_dtype_policy("float32")
        assert half.output.dtype == "float32"
        assert np.isfinite(answers(trained(half), images)).all()
        assert all(np.isfinite(weight).all() for weight in half.get_weights())
        np.savez(folder / f"{number}.{BACKEND}.npz", **logits)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
