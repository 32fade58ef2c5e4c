"""Run by test_backends.py in a process of its own: trains a tiny model and prints what can be compared.

Usage: python train_on_backend.py BACKEND FOLDER STOP_AFTER. FOLDER holds prepared images. With STOP_AFTER
the process dies by SIGKILL once that many epochs have their checkpoint.
"""

import hashlib
import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from visionpipe.backend import start_backend
from visionpipe.config import load_params

EPOCHS = 3


def main(backend, folder, stop_after):
    params = replace(load_params(Path(__file__).parents[1] / "params.yaml"), backend=backend, threads=2)
    start_backend(params)
    import keras

    from visionpipe.canonical import save_keras
    from visionpipe.data.prepared import open_prepared
    from visionpipe.models import build_model
    from visionpipe.training.checkpoint import Checkpoint
    from visionpipe.training.fit import fit

    data = open_prepared(folder)
    entries = (
        {"name": "flip", "probability": 0.5},
        {"name": "crop", "padding": 2},
        {"name": "cutout", "fraction": 0.3},
        {"name": "mixup", "off_epoch": 2},
    )

    model = build_model(
        "R14+ViT-Mi",
        2,
        16,
        filters=4,
        hidden_dim=8,
        depth=2,
        num_heads=2,
        mlp_dim=16,
        stochastic_depth_rate=0.5,
        dropout_rate=0.2,
    )
    recipe = replace(params.train, epochs=EPOCHS, batch_size=8, learning_rate=0.01, augmentation=entries)

    def report(row):
        if row["epoch"] == stop_after:
            os.kill(os.getpid(), signal.SIGKILL)

    history = fit(model, data, recipe, 5, Checkpoint(folder.parent / f"checkpoint-{backend}"), report)
    path = folder.parent / f"{backend}.keras"
    save_keras(model, path)
    logits = np.asarray(keras.ops.convert_to_numpy(model(data.images("validation"))))
    print(
        json.dumps(
            {
                "model": hashlib.sha256(path.read_bytes()).hexdigest(),
                "epochs": [row["epoch"] for row in history],
                "losses": [row["loss"] for row in history],
                "logits": logits.tolist(),
            }
        )
    )


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
