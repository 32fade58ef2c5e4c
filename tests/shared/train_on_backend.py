"""Trains tiny models and prints their results; tests run it in a subprocess.

    python train_on_backend.py BACKEND FOLDER RECIPES STOP_BEFORE [START]

FOLDER holds prepared images. RECIPES is JSON: name → the keys of a recipe that differ from RECIPE. The process kills
itself with SIGKILL before step STOP_BEFORE of a training; 0 means never. The training of a killed process continues
from its checkpoint; the checkpoints of a finished training are removed. START is a file of initial weights, which is
written if it does not exist; with START the models draw nothing at random.
"""

import hashlib
import json
import os
import shutil
import signal
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from visionpipe.project.backend import start_backend
from visionpipe.project.params import load_params
from visionpipe.project.sections import ModelConfig
from visionpipe.training.recipe import layered

RECIPE = {
    "epochs": 3,
    "batch_size": 8,
    "learning_rate": 0.01,
    "ema_decay": 0.9,
    "checkpoint_steps": 2,
    "augmentation": [
        {"name": "flip", "probability": 0.5},
        {"name": "crop", "padding": 2},
        {"name": "cutout", "fraction": 0.3},
        {"name": "mixup", "off_epoch": 2},
    ],
}
MODEL = {"filters": 4, "hidden_dim": 8, "depth": 2, "num_heads": 2, "mlp_dim": 16}
RANDOM = {"stochastic_depth_rate": 0.5, "dropout_rate": 0.2}


def main(backend, folder, recipes, stop_before, start=None):
    params = replace(load_params(Path(__file__).parents[2] / "params.yaml"), backend=backend, threads=2)
    start_backend(params)
    results = {}
    for name, changes in recipes.items():
        recipe = replace(
            params, train=layered(RECIPE, changes), models={"hybrid": ModelConfig("R14+ViT-Mi", "")}
        )
        results[name] = train(recipe.train_config("hybrid"), backend, folder, name, stop_before, start)
    print(json.dumps(results))


def train(recipe, backend, folder, name, stop_before, start):
    import keras

    from visionpipe.artifact.canonical import save_keras
    from visionpipe.data.prepared import open_prepared
    from visionpipe.models import build_model
    from visionpipe.training import watch
    from visionpipe.training.checkpoint import Checkpoint
    from visionpipe.training.fit import fit
    from visionpipe.training.teacher import Teacher, load_teacher

    data = open_prepared(folder)
    keras.utils.clear_session()  # gives the layers the same names as those of the first model of a process
    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy("mixed_bfloat16" if recipe.precision == "bfloat16" else "float32")
    model = build_model("R14+ViT-Mi", 2, 16, **MODEL, **({} if start else RANDOM))
    if start and Path(start).exists():
        model.load_weights(start)
    elif start:
        model.save_weights(start)
    steps = []
    before_step = watch.Watch.on_train_batch_begin

    def on_train_batch_begin(self, batch, logs=None):
        before_step(self, batch, logs)
        steps.append(self.steps[batch])
        if stop_before and self.steps[batch] == stop_before:
            os.kill(os.getpid(), signal.SIGKILL)

    watch.Watch.on_train_batch_begin = on_train_batch_begin
    checkpoints = folder.parent / f"checkpoints-{name}-{backend}"
    checkpoint = Checkpoint(checkpoints)
    teacher = Teacher(load_teacher(Path(recipe.distill.teacher), data)) if recipe.distill else None
    history = fit(model, data, recipe, 5, checkpoint, lambda row: None, teacher)
    shutil.rmtree(checkpoints)
    watch.Watch.on_train_batch_begin = before_step
    path = folder.parent / f"{name}-{backend}.keras"
    save_keras(model, path)
    logits = np.asarray(keras.ops.convert_to_numpy(model(data.images("validation"))))
    return {
        "file": str(path),
        "model": hashlib.sha256(path.read_bytes()).hexdigest(),
        "history": [
            {k: v for k, v in row.items() if k not in ("seconds", "images_per_second")} for row in history
        ],
        "steps": steps,
        "logits": logits.tolist(),
    }


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3]), int(sys.argv[4]), *sys.argv[5:])
