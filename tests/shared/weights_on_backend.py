"""Loads reference checkpoints into this package's models; test_weights_exact.py runs it in a subprocess.

    python weights_on_backend.py BACKEND FOLDER CASE…

Prints for each case of reference_checkpoints.py the format, head, counts and normalisation of the report, and how far
the logits are from the reference's, relative to the largest logit.
"""

import json
import os
import sys
from pathlib import Path

import numpy as np


def build(case):
    from visionpipe.models import build_model

    overrides = {name: tuple(x) if isinstance(x, list) else x for name, x in case["overrides"].items()}
    pixels = {name: tuple(case[name]) for name in ("pixel_mean", "pixel_std")}
    return build_model(case["variant"], 7, tuple(case["size"]), **pixels, **overrides)


def main(folder, names):
    import keras

    from visionpipe.weights import load_weights

    results = {}
    for name in names:
        case = json.loads((folder / name / "case.json").read_text())
        model = build(case)
        report = load_weights(model, case["path"])
        images, expected = (np.load(folder / name / f"{part}.npy") for part in ("images", "logits"))
        # JAX compiles a whole model faster than its operations one by one; the other backends need not compile.
        answer = model.predict_on_batch if os.environ["KERAS_BACKEND"] == "jax" else model
        logits = keras.ops.convert_to_numpy(answer(images))
        results[name] = {
            "format": report.format,
            "head": report.head,
            "unused": len(report.unused),
            "missing": len(report.missing),
            "mean": report.preprocessing and report.preprocessing.mean,
            "difference": float(np.abs(logits - expected).max() / np.abs(expected).max()),
            "spread": float(np.ptp(expected, axis=0).max() / np.abs(expected).max()),
            "same answers": bool((logits.argmax(1) == expected.argmax(1)).all()),
        }
    print(json.dumps(results))


if __name__ == "__main__":
    os.environ["KERAS_BACKEND"] = sys.argv[1]
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    main(Path(sys.argv[2]), sys.argv[3:])
