"""Measures how fast JPEG files become arrays of 224 px, beside tf.data, torch's DataLoader and libjpeg-turbo.

    python -m benchmarks.speed.prepare --rounds 3

The pictures have the spectrum of photographs: 40 of 12 megapixels and 400 of 0.3, copies of 10 and 100 different ones.
More would take hours, and no contender remembers a picture. All contenders have two threads or workers, and resize with
antialiasing to the middle square. visionpipe also measures and hashes every picture, as `prepare` does. Reduced ones
ask libjpeg-turbo for a fraction of the size that leaves at least twice the pixels of the result.

Every measurement runs in a fresh process. Contenders take turns, in the opposite order every second round. Raw samples
go to benchmarks/speed/prepare.json, the table goes to docs/results/input.md. benchmarks/speed/requirements-input.txt
says what to install.
"""

import argparse
import io
import itertools
import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks import results
from benchmarks.facts import versions
from benchmarks.processes import in_new_process, thread_variables

FILE = Path(__file__).parent / "prepare.json"
THREADS, SIZE = 2, 224
PHOTOS = {"12 megapixels": (3000, 4000, 10, 40), "0.3 megapixels": (480, 640, 100, 400)}
LIBRARIES = ("numpy", "pillow", "simplejpeg", "tensorflow", "torch")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--measure", nargs=2, metavar=("CONTENDER", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measured(*options.measure)))
        return
    from benchmarks.tables import write_pages
    from visionpipe.artifact.hardware import hardware

    result = {"hardware": hardware(), "threads": THREADS, "versions": versions(*LIBRARIES), "samples": []}
    variables = {"TF_CPP_MIN_LOG_LEVEL": "3", "KERAS_BACKEND": "tensorflow"} | thread_variables(THREADS)
    for photos, (height, width, different, count) in PHOTOS.items():
        with tempfile.TemporaryDirectory() as folder:
            write_photos(Path(folder), height, width, different, count)
            for number in range(options.rounds):
                for contender in list(CONTENDERS)[:: -1 if number % 2 else 1]:
                    arguments = ("--measure", contender, folder)
                    sample = in_new_process("benchmarks.speed.prepare", *arguments, **variables)
                    sample = {"round": number, "photos": photos, "contender": contender, **sample}
                    print(sample, flush=True)
                    result["samples"].append(sample)
    results.write(FILE, result)
    write_pages()


def write_photos(folder: Path, height: int, width: int, different: int, count: int) -> None:
    for number in range(different):
        file = io.BytesIO()
        photograph(height, width, number).save(file, "JPEG", quality=90)
        for copy in range(number, count, different):
            (folder / f"{copy:04}.jpg").write_bytes(file.getvalue())


def photograph(height: int, width: int, seed: int) -> Image.Image:
    """Returns a picture of which the amplitudes fall with the frequency, and colours differ less than brightness."""
    random = np.random.default_rng(seed)
    shape = (height, width // 2 + 1)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = 1
    planes = []
    for _ in range(3):
        waves = random.normal(size=shape) + 1j * random.normal(size=shape)
        planes.append(np.fft.irfft2(waves / frequency, (height, width)).astype(np.float32))
    pixels = np.stack([0.8 * planes[0] + 0.2 * plane for plane in planes], axis=2)
    return Image.fromarray((128 + 45 * pixels / pixels.std()).clip(0, 255).astype(np.uint8))


def measured(contender: str, folder: str) -> dict[str, float]:
    """Returns images per second, CPU milliseconds per image, and the peak of memory in MiB, workers included."""
    import psutil

    paths = sorted(map(str, Path(folder).iterdir()))
    run = CONTENDERS[contender](paths)
    before, start = cpu_seconds(), time.perf_counter()
    count = peak = 0
    for images in run:
        count += len(images)
        tree = [psutil.Process(), *psutil.Process().children(recursive=True)]
        peak = max(peak, sum(process.memory_info().rss for process in tree))
    del run  # and with it the workers
    seconds, used = time.perf_counter() - start, cpu_seconds() - before
    assert count == len(paths), count
    return {
        "images": round(count / seconds, 2),
        "cpu_ms": round(used / count * 1e3, 3),
        "peak_mib": round(peak / 2**20),
    }


def cpu_seconds() -> float:
    """Returns the CPU time of this process and of its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def ours(reduced: bool, paths: list[str]) -> Iterable[Any]:
    from visionpipe.data.config import PrepareConfig
    from visionpipe.data.decoding import decode_all
    from visionpipe.data.listing import Record

    config = PrepareConfig("folder", "", size=(SIZE, SIZE), reduced_decode=reduced)
    records = [Record(None, "photo", path, Path(path).read_bytes) for path in paths]
    return ([image.picture.pixels] for image in decode_all(records, config, THREADS))


def decoding_alone(reduced: bool, paths: list[str]) -> Iterable[Any]:
    """Decodes as visionpipe does, and does nothing else."""
    from visionpipe.data.deep import decode_pixels
    from visionpipe.data.form import PixelFormat

    form = PixelFormat(reduced_to=2 * SIZE if reduced else None)
    return in_threads(lambda path: decode_pixels(Path(path).read_bytes(), form)[:1], paths)


def in_threads(work: Callable[[str], Any], paths: list[str]) -> Iterable[Any]:
    with ThreadPoolExecutor(THREADS) as pool:
        yield from ([image] for image in pool.map(work, paths))


def middle(image: Image.Image) -> Image.Image:
    left, top = (max(0, (side - min(image.size)) / 2) for side in image.size)
    box = (left, top, image.width - left, image.height - top)
    return image.resize((SIZE, SIZE), Image.Resampling.BICUBIC, box=box)


def libjpeg_turbo(reduced: bool, paths: list[str]) -> Iterable[Any]:
    import simplejpeg

    least = 2 * SIZE if reduced else 0

    def work(path: str) -> np.ndarray:
        pixels = simplejpeg.decode_jpeg(Path(path).read_bytes(), min_height=least, min_width=least)
        return np.asarray(middle(Image.fromarray(pixels)))

    return in_threads(work, paths)


def torch_loader(reduced: bool, paths: list[str]) -> Iterable[Any]:
    import torch

    class Files(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(paths)

        def __getitem__(self, index: int) -> torch.Tensor:
            with Image.open(paths[index]) as file:
                if reduced:
                    file.draft("RGB", (2 * SIZE, 2 * SIZE))
                return torch.from_numpy(np.array(middle(file.convert("RGB"))))

    return torch.utils.data.DataLoader(Files(), 8, num_workers=THREADS)


def tf_data(reduced: bool, paths: list[str]) -> Iterable[Any]:
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(THREADS)
    tf.config.threading.set_inter_op_parallelism_threads(THREADS)
    with Image.open(paths[0]) as first:
        ratio = next(ratio for ratio in (8, 4, 2, 1) if min(first.size) // ratio >= 2 * SIZE or ratio == 1)

    def load(path: Any) -> Any:
        image = tf.io.decode_jpeg(tf.io.read_file(path), channels=3, ratio=ratio if reduced else 1)
        side = tf.reduce_min(tf.shape(image)[:2])
        image = tf.image.resize_with_crop_or_pad(image, side, side)
        image = tf.image.resize(image, (SIZE, SIZE), "bicubic", antialias=True)
        return tf.cast(tf.clip_by_value(tf.round(image), 0, 255), tf.uint8)

    return tf.data.Dataset.from_tensor_slices(paths).map(load, num_parallel_calls=THREADS).batch(8)


CONTENDERS: dict[str, Callable[[list[str]], Iterable[Any]]] = {
    f"{name}{suffix}": partial(contender, reduced)
    for (name, contender), (suffix, reduced) in itertools.product(
        {
            "visionpipe": ours,
            "visionpipe, decoding alone": decoding_alone,
            "libjpeg-turbo (simplejpeg), Pillow resizes": libjpeg_turbo,
            "torch DataLoader with Pillow": torch_loader,
            "tf.data": tf_data,
        }.items(),
        {"": False, ", reduced": True}.items(),
    )
}


if __name__ == "__main__":
    sys.exit(main())
