"""The models of benchmarks/serving.py, and what they take without a server.

python benchmarks/serving_models.py SCRATCH_FOLDER       makes artifact, mlflow.keras model and pyfunc model
python benchmarks/serving_models.py --bare MODEL_FOLDER  prints milliseconds per image as JSON
python benchmarks/serving_models.py --int8 MODEL_FOLDER  the same in int8 and fp32
"""

import json
import os
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
VARIANTS = {
    "resnet14": ("ResNet-14", 28, 10, {"filters": 32, "stem_stride": 2}),
    "resnet50": ("ResNet-50", 224, 1000, {}),
    "vit-s16": ("ViT-S/16", 224, 1000, {}),
}


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

    for name, (variant, size, classes, overrides) in VARIANTS.items():
        folder, artifact = scratch / name, scratch / name / "artifact"
        model = build_model(variant, classes, size, **overrides)
        model(np.zeros((1, size, size, 3), np.float32))  # Keras exports only what was called once
        random = np.random.default_rng(0)
        for weight in model.trainable_variables:  # zeros would hide what comes through them, and its errors
            if not np.any(weight):
                weight.assign(random.normal(0, 0.5 if weight.ndim == 1 else 0.02, weight.shape))
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


def bare(folder: Path) -> dict[str, float | str]:
    """decode_ms: one thread's time for an image. single_ms: one image in ONNX Runtime. batch_ms: an image's
    share of the best of several batch sizes, run on all cores together or on each core by itself.
    """
    from visionpipe.serving.classifier import Classifier

    classifier, data = Classifier(folder / "artifact"), (folder / "image.jpg").read_bytes()
    one_core, cores = Classifier(folder / "artifact", threads=1, spinning=False), os.cpu_count() or 1
    images = [np.stack([classifier.preprocess(data)] * size) for size in (1, 2, 4, 8, 16, 32)]
    together = {len(batch): median_ms(classifier.logits, batch) for batch in images}
    shares = {f"{size} on all cores": ms / size for size, ms in together.items()}
    with ThreadPoolExecutor(cores) as pool:
        for batch in images:
            each = median_ms(lambda batch: list(pool.map(one_core.logits, [batch] * cores)), batch)
            shares[f"{len(batch)} on each core"] = each / len(batch) / cores
    best = min(shares, key=lambda name: shares[name])
    return {
        "decode_ms": round(median_ms(classifier.preprocess, data), 4),
        "single_ms": round(together[1], 4),
        "batch_ms": round(shares[best], 4),
        "best_batch": best,
        "cores": cores,
    }


def int8(folder: Path) -> dict[str, float]:
    """Noise instead of images, for the weights are noise: good for speed, and for comparing logits."""
    from visionpipe.files import write_bytes
    from visionpipe.quantization import quantize
    from visionpipe.serving.classifier import Classifier

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
    if sys.argv[1] in ("--bare", "--int8"):
        print(json.dumps((bare if sys.argv[1] == "--bare" else int8)(Path(sys.argv[2]))))
    else:
        make(Path(sys.argv[1]))
