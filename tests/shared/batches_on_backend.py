"""Prints hashes of the batches that a backend would be trained on; test_backends.py runs it in a subprocess.

    python batches_on_backend.py BACKEND FOLDER WORKERS PREFETCH

FOLDER holds prepared images.
"""

import hashlib
import json
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

from visionpipe.project.backend import start_backend
from visionpipe.project.params import load_params

SEED, BATCH_SIZE = 5, 8


def main(backend, folder, workers, prefetch):
    params = replace(load_params(Path(__file__).parents[2] / "params.yaml"), backend=backend, threads=2)
    start_backend(params)
    from visionpipe.data.augmentation import AUGMENTATIONS, make_augmentation
    from visionpipe.data.batches import batch_indices, training_batches
    from visionpipe.data.prepared import open_prepared
    from visionpipe.tasks.single import Single

    data = open_prepared(folder)
    images, labels = data.images("train"), data.labels("train")
    hashes = {"indices": hashlib.sha256()}
    for step in range(24):
        hashes["indices"].update(batch_indices(SEED, step, BATCH_SIZE, len(labels)).tobytes())
    lists = {name: [{"name": name}] for name in AUGMENTATIONS} | {"all": [{"name": n} for n in AUGMENTATIONS]}
    for name, entries in lists.items():
        hashes[name] = hashlib.sha256()
        batches = training_batches(
            images,
            labels,
            targets=partial(Single.targets, classes=len(data.classes)),
            batch_size=BATCH_SIZE,
            seed=SEED,
            augment=make_augmentation(entries, SEED, 6),
            steps=range(24),
            repeated_augmentation=2,
            workers=workers,
            prefetch=prefetch,
        )
        for x, y in batches.as_numpy_iterator():
            hashes[name].update(x.tobytes() + y.tobytes())
    print(json.dumps({name: digest.hexdigest() for name, digest in hashes.items()}))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
