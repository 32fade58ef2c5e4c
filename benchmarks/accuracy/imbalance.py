"""Compares the ways to train on uneven classes, on a long-tailed draw of Fashion-MNIST.

    python -m benchmarks.accuracy.imbalance --seeds 0 1

The draw (Cui et al. 2019, arXiv:1901.05555, section 5.1): class i of 10 has 6,000 · 100^(−i/9) training images, from
6,000 to 60. Each seed shuffles the order of the classes and draws other images. The test images are the 10,000
official ones, 1,000 of each class. Every way trains a ResNet with the common recipe of params.yaml and its own keys on
top, for as many steps and from the same weights. The weights are those of the last epoch, so nothing is chosen on any
image. A class is of the head with more than 1,000 training images, of the tail with fewer than 200. Needs Debian's
package dataset-fashion-mnist.

Raw numbers go to benchmarks/accuracy/imbalance.json, the table to docs/results/accuracy.md. An interrupted run
continues after its last training.
"""

import argparse
import gzip
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import results
from benchmarks.accuracy.tables import IMBALANCE, imbalance_table
from benchmarks.facts import ROOT
from visionpipe.artifact.hardware import hardware
from visionpipe.data.prepared import Prepared, channel_statistics, open_prepared, write_manifest, write_split
from visionpipe.evaluation.metrics import confusion_matrix
from visionpipe.models import model_from_spec
from visionpipe.models.variants import resolve_variant
from visionpipe.project.backend import start_backend
from visionpipe.project.params import Params, load_params
from visionpipe.training.recipe import TrainConfig, layered

IDX = Path("/usr/share/datasets/fashion-mnist")
MOST, RATIO, CLASSES = 6000, 100, 10
VALIDATION = 30  # images of a class, which `fit` reports and nothing is chosen by
MODEL = {"filters": 16, "stem_stride": 2}
EPOCHS = 5
WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "class_weights: balanced": {"class_weights": "balanced"},
    "sampler: sqrt": {"sampler": "sqrt"},
    "sampler: balanced": {"sampler": "balanced"},
    "loss: focal": {"loss": "focal"},
    "loss: focal, class_weights: balanced": {"loss": "focal", "class_weights": "balanced"},
    "logit_adjustment: 1": {"logit_adjustment": 1.0},
    "logit_adjustment: 1, sampler: sqrt": {"logit_adjustment": 1.0, "sampler": "sqrt"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    from benchmarks.tables import write_pages

    params = replace(load_params(ROOT / "params.yaml"), backend="tensorflow", threads=options.threads)
    start_backend(params)
    machine = f"{hardware()}, {options.threads} thread{'' if options.threads == 1 else 's'}"
    result = results.read(IMBALANCE) if IMBALANCE.exists() else {"runs": []}
    result |= {"hardware": machine, "epochs": EPOCHS}
    done = {(run["seed"], run["way"]) for run in result["runs"]}
    for seed in options.seeds:
        with tempfile.TemporaryDirectory() as temporary:
            counts = write_draw(Path(temporary) / "prepared", seed)
            data = open_prepared(Path(temporary) / "prepared")
            for way, keys in WAYS.items():
                if (seed, way) not in done:
                    result["runs"].append(
                        {"seed": seed, "way": way, "counts": counts, **trained(data, params, keys, seed)}
                    )
                    results.write(IMBALANCE, result)
    write_pages()
    print(imbalance_table(result))


def trained(data: Prepared, params: Params, keys: dict[str, Any], seed: int) -> dict[str, Any]:
    """Trains one way; returns the recall of each class on the test images, and the seconds."""
    import keras

    from visionpipe.training.checkpoint import Checkpoint
    from visionpipe.training.fit import fit

    recipe = TrainConfig(**layered(params.train, {"epochs": EPOCHS}, keys))
    recipe.check()
    keras.utils.clear_session()
    keras.utils.set_random_seed(seed)
    pixels = {f"pixel_{name}": tuple(data.manifest[f"channel_{name}"]) for name in ("mean", "std")}
    build = partial(model_from_spec, resolve_variant("ResNet-14", (28, 28), **MODEL), CLASSES, (28, 28))
    model = build(**pixels)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as checkpoints:
        fit(model, data, recipe, seed, Checkpoint(Path(checkpoints)), lambda row: None)
    seconds = time.perf_counter() - start
    answers = model.predict(data.images("test").astype(np.float32), batch_size=500, verbose=0).argmax(axis=1)
    confusion = confusion_matrix(data.labels("test"), answers, CLASSES)
    return {"recall": (np.diag(confusion) / confusion.sum(axis=1)).tolist(), "seconds": round(seconds, 1)}


def write_draw(folder: Path, seed: int) -> list[int]:
    """Writes the prepared form of a draw into `folder`; returns the number of training images of each class."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(seed)
    images, labels = read_split("train")
    sizes = (MOST * RATIO ** (-np.arange(CLASSES) / (CLASSES - 1))).round().astype(int)
    counts = random.permutation(sizes)
    rows: dict[str, list[int]] = {"train": [], "validation": []}
    for label, count in enumerate(counts.tolist()):
        of_class = random.permutation(np.flatnonzero(labels == label)).tolist()
        rows["train"] += of_class[:count]
        rows["validation"] += of_class[-VALIDATION:]
    for split, chosen in rows.items():
        names = [f"train/{row}" for row in chosen]
        write_split(folder, split, images, chosen, labels[chosen].tolist(), names)
    mean, std = channel_statistics(images, rows["train"])
    test, test_labels = read_split("t10k")
    everything = list(range(len(test)))
    write_split(folder, "test", test, everything, test_labels.tolist(), [f"t10k/{row}" for row in everything])
    write_manifest(
        folder, size=(28, 28), classes=[str(label) for label in range(CLASSES)], channel_mean=mean, channel_std=std,
        quarantined=[], warnings=[],
    )  # fmt: skip
    return [int(count) for count in counts]


def read_split(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Reads a split of Fashion-MNIST; returns uint8 (n, 28, 28, 3) and uint8 (n,)."""
    pixels, labels = (
        np.frombuffer(gzip.decompress((IDX / f"{name}-{file}-ubyte.gz").read_bytes())[header:], np.uint8)
        for file, header in (("images-idx3", 16), ("labels-idx1", 8))
    )
    return np.repeat(pixels.reshape(-1, 28, 28, 1), 3, axis=3), labels


if __name__ == "__main__":
    main()
