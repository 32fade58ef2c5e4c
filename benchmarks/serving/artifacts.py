"""Makes the models that the servers are compared with, and measures what they take without a server.

python -m benchmarks.serving.artifacts SCRATCH_FOLDER       makes artifacts, MLflow models and a registry
python -m benchmarks.serving.artifacts --bare MODEL_FOLDER  prints milliseconds per image as JSON
python -m benchmarks.serving.artifacts --int8 MODEL_FOLDER  the same in int8 and fp32
"""

import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.facts import ROOT

VARIANTS = {
    "resnet14": ("ResNet-14", 28, 10, {"filters": 32, "stem_stride": 2}),
    "resnet50": ("ResNet-50", 224, 1000, {}),
    "vit-s16": ("ViT-S/16", 224, 1000, {}),
}


def make(scratch: Path) -> None:
    from visionpipe.project.backend import start_backend
    from visionpipe.project.params import load_params

    start_backend(load_params(ROOT / "params.yaml"), backend="tensorflow")
    import mlflow
    from mlflow.types import Schema, TensorSpec

    from visionpipe.artifact.canonical import with_probabilities
    from visionpipe.artifact.digest import artifact_sha256
    from visionpipe.artifact.package import pyfunc_arguments
    from visionpipe.files import write_bytes, write_json
    from visionpipe.models import build_model
    from visionpipe.stages.export import onnx_bytes

    store = f"sqlite:///{scratch / 'mlflow.db'}"
    for name, (variant, size, classes, overrides) in VARIANTS.items():
        folder, artifact = scratch / name, scratch / name / "artifact"
        model = build_model(variant, classes, size, **overrides)
        model(np.zeros((1, size, size, 3), np.float32))  # Keras exports only what was called once
        random = np.random.default_rng(0)
        for weight in model.trainable_variables:  # zeros would hide what comes through them, and its errors
            if not np.any(weight):
                weight.assign(random.normal(0, 0.5 if weight.ndim == 1 else 0.02, weight.shape))
        write_bytes(artifact / "model.onnx", with_probabilities(onnx_bytes(model, 18), "softmax"))
        write_json(artifact / "labels.json", [f"class {index}" for index in range(classes)])
        write_json(artifact / "preprocessing.json", {"size": [size, size]})
        pixels, logits = TensorSpec(np.dtype(np.float32), (-1, size, size, 3)), (-1, classes)
        signature = mlflow.models.ModelSignature(
            Schema([pixels]), Schema([TensorSpec(np.dtype(np.float32), logits)])
        )
        mlflow.keras.save_model(model, str(folder / "mlflow-keras"), signature=signature, pip_requirements=[])
        with tempfile.TemporaryDirectory() as code:
            mlflow.pyfunc.save_model(folder / "pyfunc", **pyfunc_arguments(artifact, Path(code)))
        client = mlflow.MlflowClient(store, store)
        client.create_registered_model(name)
        for _ in range(2):
            source, tags = (folder / "pyfunc").as_uri(), {"artifact_sha256": artifact_sha256(artifact)}
            client.create_model_version(name, source, tags=tags)
        client.set_registered_model_alias(name, "champion", "1")


def bare(folder: Path) -> dict[str, float | str]:
    """Returns what decoding and ONNX Runtime take with nothing around them.

    decode_ms, single_ms: the median time of one image while nothing else runs.
    offline_ms: an image's mean share of the time while all cores decode images and run them in batches, as fast as
    any of several ways does: batches on all cores together after their images have been decoded on all of them, or
    each core with batches of its own. The cores are busy meanwhile, for two of them may be one core's two threads,
    which are slower together than alone.
    """
    from visionpipe.artifact.classifier import Classifier

    classifier, data = Classifier(folder / "artifact"), (folder / "image.jpg").read_bytes()
    one_core, cores = Classifier(folder / "artifact", threads=1, spinning="never"), os.cpu_count() or 1

    def decode(count: int) -> np.ndarray:
        return np.stack([classifier.preprocess(data) for _ in range(count)])

    shares = {}
    for size in (8, 32) if max(classifier.size) < 100 else (2, 8):
        together = mean_ms(classifier.logits, decode(size)) + mean_ms_on_each_core(decode, size) / cores
        each = mean_ms_on_each_core(lambda count: one_core.logits(decode(count)), size) / cores
        shares |= {f"{size} on all cores": together / size, f"{size} on each core": each / size}
    best = min(shares, key=lambda name: shares[name])
    return {
        "decode_ms": round(median_ms(classifier.preprocess, data), 4),
        "single_ms": round(median_ms(classifier.logits, decode(1)), 4),
        "offline_ms": round(shares[best], 4),
        "best_batch": best,
        "cores": cores,
    }


def int8(folder: Path) -> dict[str, float]:
    """Returns the times of int8 and fp32 and how far the logits differ, on noise: the weights are noise too."""
    from visionpipe.artifact.classifier import Classifier
    from visionpipe.artifact.quantization import quantize
    from visionpipe.files import write_bytes

    classifiers = [Classifier(folder / "artifact")]
    images = np.random.default_rng(0).integers(0, 256, (32, *classifiers[0].size, 3), np.uint8)
    with tempfile.TemporaryDirectory() as temporary:
        quantised = Path(temporary)
        for name in ("labels.json", "preprocessing.json"):
            write_bytes(quantised / name, (folder / "artifact" / name).read_bytes())
        content = quantize((folder / "artifact" / "model.onnx").read_bytes(), images)
        write_bytes(quantised / "model.onnx", content)
        classifiers.append(Classifier(quantised))
    fp32_ms, int8_ms = (median_ms(classifier.logits, images[:8], 3.0) / 8 for classifier in classifiers)
    fp32_logits, int8_logits = (classifier.logits(images[:8]) for classifier in classifiers)
    difference = np.abs(int8_logits - fp32_logits).max() / np.abs(fp32_logits).max()
    return {
        "fp32_ms": round(fp32_ms, 4),
        "int8_ms": round(int8_ms, 4),
        "logit_difference": round(float(difference), 4),
    }


def median_ms(function: Callable, argument: Any, seconds: float = 1.0) -> float:
    return float(np.median(times_ms(function, argument, seconds)))


def mean_ms(function: Callable, argument: Any) -> float:
    return float(np.mean(times_ms(function, argument)))


def mean_ms_on_each_core(function: Callable, argument: Any) -> float:
    """Runs in a process for each core, all at the same time."""
    with multiprocessing.get_context("fork").Pool(initializer=inherit, initargs=(function, argument)) as pool:
        return float(np.mean(pool.map(mean_ms_of_inherited, range(os.cpu_count() or 1), chunksize=1)))


def inherit(function: Callable, argument: Any) -> None:
    global inherited
    inherited = function, argument


def mean_ms_of_inherited(_: int) -> float:
    return mean_ms(*inherited)


def times_ms(function: Callable, argument: Any, seconds: float = 1.0) -> list[float]:
    for _ in range(2):
        function(argument)
    times, end = [], time.perf_counter() + seconds
    while len(times) < 4 or time.perf_counter() < end:
        start = time.perf_counter()
        function(argument)
        times.append(1000 * (time.perf_counter() - start))
    return times


if __name__ == "__main__":
    if sys.argv[1] in ("--bare", "--int8"):
        print(json.dumps((bare if sys.argv[1] == "--bare" else int8)(Path(sys.argv[2]))))
    else:
        make(Path(sys.argv[1]))
