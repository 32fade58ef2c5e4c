"""The models of benchmarks/serving.py, and what they take without a server.

python benchmarks/serving_models.py SCRATCH_FOLDER       makes artifact, mlflow.keras model and pyfunc model
python benchmarks/serving_models.py --bare MODEL_FOLDER  prints milliseconds per image as JSON
"""

import json
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
VARIANTS = {28: ("ResNet-14", 10, {"filters": 32, "stem_stride": 2}), 224: ("ResNet-50", 1000, {})}


def make(scratch: Path) -> None:
    from visionpipe.backend import start_backend
    from visionpipe.config import load_params

    start_backend(load_params(ROOT / "params.yaml"), backend="tensorflow")
    import mlflow
    from mlflow.types import Schema, TensorSpec

    from visionpipe.export import onnx_bytes
    from visionpipe.files import write_bytes, write_json
    from visionpipe.models import build_model
    from visionpipe.serving.package import pyfunc_arguments

    for size, (variant, classes, overrides) in VARIANTS.items():
        folder, artifact = scratch / str(size), scratch / str(size) / "artifact"
        model = build_model(variant, classes, size, **overrides)
        model(np.zeros((1, size, size, 3), np.float32))  # Keras exports only what was called once
        write_bytes(artifact / "model.onnx", onnx_bytes(model, 18))
        write_json(artifact / "labels.json", [f"class {index}" for index in range(classes)])
        write_json(artifact / "preprocessing.json", {"size": [size, size]})
        pixels, logits = TensorSpec(np.dtype(np.float32), (-1, size, size, 3)), (-1, classes)
        signature = mlflow.models.ModelSignature(
            Schema([pixels]), Schema([TensorSpec(np.dtype(np.float32), logits)])
        )
        mlflow.keras.save_model(model, str(folder / "mlflow-keras"), signature=signature, pip_requirements=[])
        with tempfile.TemporaryDirectory() as code:
            mlflow.pyfunc.save_model(folder / "pyfunc", **pyfunc_arguments(artifact, Path(code)))


def bare(folder: Path) -> dict[str, float]:
    """decode_ms: one thread's time for an image. single_ms: one image in ONNX Runtime. batch_ms: an image's
    share of the best of several batch sizes.
    """
    from visionpipe.serving.classifier import Classifier

    classifier, data = Classifier(folder / "artifact"), (folder / "image.jpg").read_bytes()
    image = classifier.preprocess(data)
    rates = {
        size: median_ms(lambda batch: classifier.logits(batch), np.stack([image] * size))
        for size in (1, 2, 4, 8, 16, 32)
    }
    best = min(rates, key=lambda size: rates[size] / size)
    return {
        "decode_ms": round(median_ms(classifier.preprocess, data), 4),
        "single_ms": round(rates[1], 4),
        "batch_ms": round(rates[best] / best, 4),
        "best_batch": best,
        "cores": os.cpu_count() or 1,
    }


def median_ms(function, argument, seconds: float = 1.0) -> float:
    for _ in range(2):
        function(argument)
    times, end = [], time.perf_counter() + seconds
    while len(times) < 5 or time.perf_counter() < end:
        start = time.perf_counter()
        function(argument)
        times.append(time.perf_counter() - start)
    return float(np.median(times)) * 1000


if __name__ == "__main__":
    if sys.argv[1] == "--bare":
        print(json.dumps(bare(Path(sys.argv[2]))))
    else:
        make(Path(sys.argv[1]))
