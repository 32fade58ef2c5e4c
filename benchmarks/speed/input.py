"""Measures how fast batches are made, beside what the models consume, tf.data and torch's DataLoader.

    python -m benchmarks.speed.input --rounds 3

28 px: our loader alone, with flip and crop, and the default models of params.yaml, which train on one batch that is
always ready. 224 px: arrays as `prepare` writes them, and JPEG files of 256 px through what people write with tf.data
and torch (read, decode, random crop, flip). Memory: what the loader holds that no file backs, with 10,000 and with
1,000,000 stored images (a sparse file).

Every measurement runs in a fresh process with two threads. Contenders take turns, in the opposite order every second
round. Raw samples go to benchmarks/speed/input.json as they come, and an interrupted run continues from there. The
tables go to docs/results/input.md.
"""

import argparse
import itertools
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import results
from benchmarks.facts import ROOT, versions
from benchmarks.processes import in_new_process, thread_variables

FILE = Path(__file__).parent / "input.json"
THREADS, SECONDS, BATCH = 2, 4.0, 64
STORED, JPEG_SIZE, SIZE = 1000, 256, 224
FLIP_AND_CROP = ({"name": "flip", "probability": 0.5}, {"name": "crop", "padding": 4})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--fresh", action="store_true", help="measure all anew, instead of continuing")
    parser.add_argument("--measure", metavar="CONTENDER", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(CONTENDERS[options.measure](Path(folder))))
        return
    from benchmarks.tables import write_pages
    from visionpipe.artifact.hardware import hardware

    result = {"samples": []} if options.fresh or not FILE.exists() else results.read(FILE)
    installed = versions("keras", "numpy", "pillow", "tensorflow", "torch")
    setting = {"hardware": hardware(), "threads": THREADS, "versions": installed}
    if result["samples"] and any(result.get(key) != value for key, value in setting.items()):
        sys.exit(f"{FILE.name} is of another machine or other versions: add --fresh")
    result |= setting
    done = {(sample["round"], sample["contender"]) for sample in result["samples"]}
    for number in range(options.rounds):
        for contender in list(CONTENDERS)[:: -1 if number % 2 else 1]:
            if (number, contender) not in done:
                sample = {"round": number, "contender": contender, **measured(contender)}
                print(sample, flush=True)
                result["samples"].append(sample)
                results.write(FILE, result)
    write_pages()


def measured(contender: str) -> dict[str, float]:
    variables = {"TF_CPP_MIN_LOG_LEVEL": "3", "KERAS_BACKEND": "tensorflow"} | thread_variables(THREADS)
    return in_new_process("benchmarks.speed.input", "--measure", contender, **variables)


def rate(batches: Iterator[Any], batch_size: int) -> dict[str, float]:
    """Returns batches and images per second after 20 batches, and CPU microseconds per image, of children too."""
    for _ in range(20):
        next(batches)
    count, start, used = 0, time.perf_counter(), cpu_seconds()
    while time.perf_counter() - start < SECONDS:
        next(batches)
        count += 1
    seconds, used = time.perf_counter() - start, cpu_seconds() - used
    return {
        "batches": round(count / seconds, 2),
        "images": round(count * batch_size / seconds, 1),
        "cpu_us": round(used / count / batch_size * 1e6, 2),
    }


def cpu_seconds() -> float:
    import psutil

    process = psutil.Process()
    times = [p.cpu_times() for p in (process, *process.children(recursive=True))]
    return sum(t.user + t.system for t in times)


def start_tensorflow() -> Any:
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(THREADS)
    tf.config.threading.set_inter_op_parallelism_threads(THREADS)
    return tf


def our_batches(
    images: np.ndarray, batch_size: int, entries: tuple[dict[str, Any], ...] = FLIP_AND_CROP
) -> Iterator[Any]:
    start_tensorflow()
    from visionpipe.data.augmentation import make_augmentation
    from visionpipe.data.batches import training_batches
    from visionpipe.tasks.single import Single

    labels = np.arange(len(images), dtype=np.int32) % 10
    augment = make_augmentation(entries, 0, 100)
    return iter(
        training_batches(
            images,
            labels,
            targets=partial(Single.targets, classes=10),
            batch_size=batch_size,
            seed=0,
            augment=augment,
            steps=range(10**9),
        )
    )


def small_images(batch_size: int, entries: tuple[dict[str, Any], ...], folder: Path) -> dict[str, float]:
    images = np.random.default_rng(0).integers(0, 256, (4500, 28, 28, 3), np.uint8)
    np.save(folder / "images.npy", images)
    stored = np.load(folder / "images.npy", mmap_mode="r")
    return rate(our_batches(stored, batch_size, entries), batch_size)


def default_model(name: str, folder: Path) -> dict[str, float]:
    """Returns what a model of params.yaml consumes; every step is waited for."""
    tf = start_tensorflow()  # before what is imported next, which begins to use TensorFlow
    import keras

    from visionpipe.acceleration.network import accelerate
    from visionpipe.models import model_from_spec
    from visionpipe.project.params import load_params
    from visionpipe.training.adamw import AdamW

    params = load_params(ROOT / "params.yaml")
    size, batch_size = params.prepare.size, params.train_config(name).batch_size
    model = accelerate(model_from_spec(params.model_spec(name), 10, size, [73.0] * 3, [90.0] * 3))
    model.compile(AdamW(1e-3), keras.losses.CategoricalCrossentropy(from_logits=True))
    images = np.random.default_rng(0).integers(0, 256, (batch_size, *size, 3)).astype(np.float32)
    feed = iter(
        tf.data.Dataset.from_tensors(
            (images, np.eye(10, dtype=np.float32)[np.arange(batch_size) % 10])
        ).repeat()
    )

    def steps() -> Iterator[Any]:
        while True:
            yield model.train_on_batch(*next(feed))

    return rate(steps(), batch_size)


def picture(random: np.random.Generator, size: int) -> np.ndarray:
    """Returns uint8 (size, size, 3): blobs with fine grain, which make a JPEG as large as a photograph's."""
    from PIL import Image

    blobs = Image.fromarray(random.integers(0, 256, (12, 12, 3), np.uint8)).resize(
        (size, size), Image.Resampling.BICUBIC
    )
    return (np.asarray(blobs) + random.normal(0, 8, (size, size, 3))).clip(0, 255).astype(np.uint8)


def large_arrays(folder: Path) -> dict[str, float]:
    random = np.random.default_rng(0)
    np.save(folder / "images.npy", np.stack([picture(random, SIZE) for _ in range(STORED)]))
    return rate(our_batches(np.load(folder / "images.npy", mmap_mode="r"), BATCH), BATCH)


def write_jpegs(folder: Path) -> list[str]:
    from PIL import Image

    random = np.random.default_rng(0)
    paths = [str(folder / f"{index}.jpg") for index in range(STORED)]
    for path in paths:
        Image.fromarray(picture(random, JPEG_SIZE)).save(path, quality=90)
    return paths


def tf_data_jpegs(folder: Path) -> dict[str, float]:
    tf = start_tensorflow()
    paths = write_jpegs(folder)

    def load(path: Any, label: Any) -> tuple[Any, Any]:
        image = tf.io.decode_jpeg(tf.io.read_file(path), channels=3)
        image = tf.image.random_crop(image, (SIZE, SIZE, 3))
        return tf.image.random_flip_left_right(image), tf.one_hot(label, 10)

    files = tf.data.Dataset.from_tensor_slices((paths, np.arange(STORED) % 10)).shuffle(STORED).repeat()
    images = files.map(load, num_parallel_calls=tf.data.AUTOTUNE).batch(BATCH)
    floats = images.map(lambda x, y: (tf.cast(x, tf.float32), y), num_parallel_calls=tf.data.AUTOTUNE)
    return rate(iter(floats.prefetch(tf.data.AUTOTUNE)), BATCH)


def torch_jpegs(folder: Path) -> dict[str, float]:
    import torch
    from PIL import Image

    torch.set_num_threads(THREADS)
    paths = write_jpegs(folder)

    class Files(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(paths)

        def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
            with Image.open(paths[index]) as file:
                image = file.convert("RGB")
            top, left = torch.randint(0, JPEG_SIZE - SIZE + 1, (2,)).tolist()
            image = image.crop((left, top, left + SIZE, top + SIZE))
            if torch.rand(()) < 0.5:
                image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            return torch.from_numpy(np.array(image)), index % 10

    loader = torch.utils.data.DataLoader(
        Files(), BATCH, shuffle=True, num_workers=2, drop_last=True, persistent_workers=True
    )
    batches = itertools.chain.from_iterable(itertools.repeat(loader))
    return rate(((images.float(), labels) for images, labels in batches), BATCH)


def memory(count: int, folder: Path) -> dict[str, float]:
    """Returns MiB of anonymous memory after 2,000 batches out of `count` stored images, and batches per second."""
    stored = np.lib.format.open_memmap(folder / "images.npy", "w+", np.uint8, (count, 28, 28, 3))
    del stored  # a file of holes
    batches = our_batches(np.load(folder / "images.npy", mmap_mode="r"), BATCH)
    start = time.perf_counter()
    for _ in range(2000):
        next(batches)
    lines = Path("/proc/self/status").read_text().splitlines()
    kib = next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))
    return {"anonymous_mib": round(kib / 1024, 1), "batches": round(2000 / (time.perf_counter() - start), 1)}


CONTENDERS: dict[str, Callable[[Path], dict[str, float]]] = {
    "loader, flip and crop, batch 64": partial(small_images, 64, FLIP_AND_CROP),
    "loader, flip and crop, batch 32": partial(small_images, 32, FLIP_AND_CROP),
    "loader, no augmentation, batch 64": partial(small_images, 64, ()),
    "training of resnet": partial(default_model, "resnet"),
    "training of vit": partial(default_model, "vit"),
    "training of hybrid": partial(default_model, "hybrid"),
    "visionpipe, memory-mapped arrays": large_arrays,
    "tf.data, JPEG files": tf_data_jpegs,
    "torch DataLoader, JPEG files, 2 workers": torch_jpegs,
    "10,000 stored images": partial(memory, 10_000),
    "1,000,000 stored images": partial(memory, 1_000_000),
}


if __name__ == "__main__":
    main()
