"""Builds fashion-mini.zip: 5,000 training and 1,000 test images drawn from Fashion-MNIST, as PNG files.

    apt-get install dataset-fashion-mnist
    python data/make_fashion_mini.py
    python data/make_fashion_mini.py --official-test large.zip

The second form writes the same training images with all 10,000 official test images to large.zip.

Entries are SPLIT/CLASS/NNNNN.png, where NNNNN is the image's index in the official split. One Pillow
version writes the same bytes every time.
"""

import argparse
import gzip
import io
import sys
import zipfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

CLASSES = (
    "t-shirt",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle-boot",
)
IDX_FOLDER = Path("/usr/share/datasets/fashion-mnist")
SAMPLE = Path(__file__).with_name("fashion-mini.zip")
TRAIN_IMAGES_PER_CLASS, TEST_IMAGES_PER_CLASS = 500, 100
SEED = 0


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("idx_folder", nargs="?", type=Path, default=IDX_FOLDER, help="default: %(default)s")
    parser.add_argument(
        "--official-test", type=Path, metavar="ZIP", help="write all official test images to ZIP"
    )
    arguments = parser.parse_args()
    try:
        write_zip(arguments.idx_folder, arguments.official_test or SAMPLE, bool(arguments.official_test))
    except FileNotFoundError as error:
        sys.exit(f"{error.filename} is missing: apt-get install dataset-fashion-mnist")


def write_zip(idx_folder: Path, output: Path, official_test: bool) -> None:
    """Writes the sample; with `official_test` all official test images instead of the drawn ones."""
    generator = np.random.default_rng(SEED)
    train_images, train_labels = read_split(idx_folder, "train")
    test_images, test_labels = read_split(idx_folder, "t10k")
    train = draw(train_labels, TRAIN_IMAGES_PER_CLASS, generator)
    test = (
        np.arange(len(test_labels)) if official_test else draw(test_labels, TEST_IMAGES_PER_CLASS, generator)
    )
    entries = {entry_name("train", train_labels, index): train_images[index] for index in train}
    entries |= {entry_name("test", test_labels, index): test_images[index] for index in test}
    with zipfile.ZipFile(output, "w") as archive:
        for name in sorted(entries):
            archive.writestr(zipfile.ZipInfo(name), png(entries[name]))  # dated 1980-01-01
    print(f"{output}: {len(train):,} training and {len(test):,} test images, {output.stat().st_size:,} bytes")


def read_split(idx_folder: Path, split: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Images uint8 (n, 28, 28) and labels uint8 (n,) of an official split, `train` or `t10k`."""
    images, labels = (
        np.frombuffer(
            gzip.decompress((idx_folder / f"{split}-{file}-ubyte.gz").read_bytes())[header:], np.uint8
        )
        for file, header in (("images-idx3", 16), ("labels-idx1", 8))
    )
    return images.reshape(-1, 28, 28), labels


def draw(labels: NDArray[np.uint8], per_class: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """Indices of `per_class` images of every class."""
    classes = range(len(CLASSES))
    return np.concatenate(
        [generator.choice(np.flatnonzero(labels == label), per_class, replace=False) for label in classes]
    )


def entry_name(split: str, labels: NDArray[np.uint8], index: int) -> str:
    return f"{split}/{CLASSES[labels[index]]}/{index:05d}.png"


def png(image: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


if __name__ == "__main__":
    main()
