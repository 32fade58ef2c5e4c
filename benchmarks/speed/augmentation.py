"""Measures the CPU time of flip and crop and of RandAugment at 224 px, beside torchvision, albumentations and tf.data.

    python -m benchmarks.speed.augmentation --rounds 3

Every contender gets the same 64 pictures, uint8 in memory, and makes them a batch of float32, with one thread.
albumentations has no RandAugment: it draws two of fourteen like operations. TensorFlow has none either, and keras-cv's
layer stands for it.

Every measurement runs in a fresh process. Contenders take turns, in the opposite order every second round. Raw samples
go to benchmarks/speed/augmentation.json, the table goes to docs/results/input.md.
benchmarks/speed/requirements-input.txt says what to install.
"""

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import results
from benchmarks.facts import versions
from benchmarks.processes import in_new_process, thread_variables
from benchmarks.speed.input import picture

FILE = Path(__file__).parent / "augmentation.json"
SIZE, BATCH, PADDING, SECONDS = 224, 64, 4, 4.0
TASKS = {
    "flip and crop": [{"name": "flip"}, {"name": "crop", "padding": PADDING}],
    "RandAugment": [{"name": "rand_augment", "count": 2, "magnitude": 9}],
}
LIBRARIES = ("albumentations", "keras-cv", "numpy", "opencv-python-headless", "pillow", "tensorflow")
TORCH = ("torch", "torchvision")
Step = Callable[[int], Any]  # the number of a batch → the batch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--measure", nargs=2, metavar=("TASK", "CONTENDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measured(*options.measure)))
        return
    from benchmarks.tables import write_pages
    from visionpipe.artifact.hardware import hardware

    result = {"hardware": hardware(), "threads": 1, "versions": versions(*LIBRARIES, *TORCH), "samples": []}
    variables = {"TF_CPP_MIN_LOG_LEVEL": "3", "KERAS_BACKEND": "tensorflow"} | thread_variables(1)
    for number in range(options.rounds):
        for task in TASKS:
            for contender in list(CONTENDERS)[:: -1 if number % 2 else 1]:
                sample = in_new_process(
                    "benchmarks.speed.augmentation", "--measure", task, contender, **variables
                )
                sample = {"round": number, "task": task, "contender": contender, **sample}
                print(sample, flush=True)
                result["samples"].append(sample)
    results.write(FILE, result)
    write_pages()


def measured(task: str, contender: str) -> dict[str, float]:
    """Returns the median of the CPU microseconds per image of many batches."""
    generator = np.random.default_rng(0)
    pictures = np.stack([picture(generator, SIZE) for _ in range(BATCH)])
    step, times = CONTENDERS[contender](task, pictures), []
    for number in range(3):
        step(number)
    start = time.perf_counter()
    while time.perf_counter() - start < SECONDS:
        used = time.process_time()
        step(len(times))
        times.append(time.process_time() - used)
    return {"cpu_us": round(statistics.median(times) / BATCH * 1e6, 1)}


def tensorflow() -> Any:
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    return tf


def ours(task: str, pictures: np.ndarray) -> Step:
    tf = tensorflow()
    from visionpipe.data.augmentation import make_augmentation

    augment = make_augmentation(TASKS[task], 0, 100)
    images, targets = tf.constant(pictures), tf.one_hot(np.arange(BATCH) % 10, 10)
    return lambda number: augment(images, targets, tf.constant(number, tf.int64))


def tf_data(task: str, pictures: np.ndarray) -> Step:
    tf = tensorflow()
    images = tf.data.Dataset.from_tensor_slices(pictures).cache().repeat()

    def flipped_and_cropped(image: Any) -> Any:
        image = tf.image.resize_with_crop_or_pad(image, SIZE + 2 * PADDING, SIZE + 2 * PADDING)
        return tf.image.random_flip_left_right(tf.image.random_crop(image, (SIZE, SIZE, 3)))

    if task == "RandAugment":
        import keras_cv

        layer = keras_cv.layers.RandAugment((0, 255), augmentations_per_image=2, magnitude=0.5)
        batches = images.batch(BATCH).map(lambda batch: layer(tf.cast(batch, tf.float32)))
    else:
        batches = images.map(flipped_and_cropped).batch(BATCH).map(lambda batch: tf.cast(batch, tf.float32))
    iterator = iter(batches)
    return lambda number: next(iterator)


def torchvision_v2(task: str, pictures: np.ndarray) -> Step:
    import torch

    torch.set_num_threads(1)
    operators = ("nms", "qnms", "roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool", "deform_conv2d")
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in operators:  # the wheel of another build of torch has none, and needs none here
        library.define(f"{name}(Tensor boxes) -> Tensor")
    from torchvision.transforms import v2

    kinds = [v2.RandomHorizontalFlip(), v2.RandomCrop(SIZE, PADDING)]
    if task == "RandAugment":
        kinds = [v2.RandAugment(2, 9, interpolation=v2.InterpolationMode.BILINEAR, fill=127)]
    augment = v2.Compose(kinds)
    images = torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous()
    return lambda number: torch.stack([augment(image) for image in images]).float()


def albumentations(task: str, pictures: np.ndarray) -> Step:
    import albumentations as A
    import cv2

    cv2.setNumThreads(1)
    grey = {"fill": 127, "border_mode": cv2.BORDER_CONSTANT, "p": 1}
    share = (0.73, 1.27)  # 0.9 levels of 10, as visionpipe's magnitude 9
    fourteen = [
        A.NoOp(),
        A.AutoContrast(p=1),
        A.Equalize(p=1, by_channels=True),
        A.Rotate((-27, 27), **grey),
        A.Solarize(p=1, threshold_range=(0.1, 0.1)),
        A.Posterize(4, p=1),
        A.ColorJitter(0, 0, share, 0, p=1),
        A.ColorJitter(0, share, 0, 0, p=1),
        A.ColorJitter(share, 0, 0, 0, p=1),
        A.Sharpen(p=1),
        A.Affine(shear={"x": (-15, 15), "y": 0}, **grey),
        A.Affine(shear={"x": 0, "y": (-15, 15)}, **grey),
        A.Affine(translate_percent={"x": (-0.4, 0.4), "y": 0}, **grey),
        A.Affine(translate_percent={"x": 0, "y": (-0.4, 0.4)}, **grey),
    ]
    pad = A.PadIfNeeded(SIZE + 2 * PADDING, SIZE + 2 * PADDING, border_mode=cv2.BORDER_CONSTANT)
    kinds = [A.HorizontalFlip(), pad, A.RandomCrop(SIZE, SIZE)]
    augment = A.Compose([A.SomeOf(fourteen, 2, replace=True)] if task == "RandAugment" else kinds)
    random.seed(0)
    return lambda number: np.stack([augment(image=image)["image"] for image in pictures]).astype(np.float32)


CONTENDERS: dict[str, Callable[[str, np.ndarray], Step]] = {
    "visionpipe": ours,
    "tf.data": tf_data,
    "torchvision v2": torchvision_v2,
    "albumentations": albumentations,
}


if __name__ == "__main__":
    sys.exit(main())
