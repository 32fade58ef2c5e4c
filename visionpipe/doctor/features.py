"""Describes the prepared images by 256 numbers, which need no training: shapes, and coarse colours.

Oriented gradients of 7 × 7 parts and the colours of 14 × 14 parts, reduced by principal components.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from visionpipe.data.gradients import oriented_gradients
from visionpipe.data.measures import GREY, as_picture
from visionpipe.data.prepared import Prepared
from visionpipe.files import replacing_file, sha256_json

VERSION = 1  # of the description; another number makes cached features void
CELLS = 7
COLOUR_PARTS = 14
SMALL, LARGE = 28, 56  # sides to which images are resized, below and from LARGE_FROM pixels on
LARGE_FROM = 48
SHAPES = 2.0  # weight of shapes, where that of colours is 1
COMPONENTS = 256
CHUNK = 256  # images
MOST_LEARNED = 10_000  # images that the principal components are computed from


def features(data: Prepared, folder: Path) -> np.ndarray:
    """Returns the features of all images, in the order of the splits: float32 (n, at most COMPONENTS).

    They are kept in `folder`, so that a second look at the same images takes no time.
    """
    key = sha256_json([VERSION, data.manifest["content_sha256"]])[:16]
    path = folder / f"features-{key}.npy"
    if path.exists():
        return np.load(path)
    for old in folder.glob("features-*.npy"):
        old.unlink()
    total = sum(len(data.images(split)) for split in data.splits)
    step = -(-total // MOST_LEARNED)
    mean, basis = principal_components(described(data, step, "features, 1 of 2"))
    parts = [(part - mean) @ basis for part in described(data, 1, "features, 2 of 2")]
    result = np.concatenate(parts).astype(np.float32)
    with replacing_file(path) as file:
        np.save(file, result)
    return result


def described(data: Prepared, step: int, title: str) -> Iterator[np.ndarray]:
    """Yields the descriptions, float32 (n, values), of every `step`-th image."""
    total = sum(-(-len(data.images(split)) // step) for split in data.splits)
    with tqdm(total=total, desc=title, unit=" images", disable=None) as progress:
        for split in data.splits:
            images = data.images(split)[::step]
            describe = description(images.shape[1:3])
            for start in range(0, len(images), CHUNK):
                part = describe(np.stack([as_picture(image) for image in images[start : start + CHUNK]]))
                progress.update(len(part))
                yield part


def description(size: tuple[int, ...]) -> Callable[[np.ndarray], np.ndarray]:
    """Returns the function from uint8 (n, height, width, 3), with this height and width, to float32 (n, values)."""
    side = LARGE if min(size) >= LARGE_FROM else SMALL
    rows, columns = (resampling(length, side) for length in size)
    block = side // COLOUR_PARTS

    def describe(images: np.ndarray) -> np.ndarray:
        count, height, width = images.shape[:3]
        pixels = images.astype(np.float32).reshape(count, height, width * 3)
        lower = (rows @ pixels).reshape(count, side, width, 3).swapaxes(1, 2)
        small = (columns @ lower.reshape(count, width, side * 3)).reshape(count, side, side, 3).swapaxes(1, 2)
        shapes = locally_normalised(oriented_gradients(small @ GREY, CELLS)).reshape(count, -1)
        colours = small.reshape(count, COLOUR_PARTS, block, COLOUR_PARTS, block, 3).mean(axis=(2, 4))
        colours = colours.reshape(count, -1) / 255
        parts = (shapes * (SHAPES / shapes.shape[1] ** 0.5), colours / colours.shape[1] ** 0.5)
        return np.concatenate(parts, axis=1)

    return describe


def resampling(source: int, target: int) -> np.ndarray:
    """Returns the weights of a linear resampling of one axis, which averages where it shrinks: (target, source)."""
    scale = source / target
    centre = (np.arange(target)[:, None] + 0.5) * scale - 0.5
    weights = np.maximum(0, 1 - np.abs(np.arange(source)[None] - centre) / max(scale, 1))
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def locally_normalised(histograms: np.ndarray) -> np.ndarray:
    """Divides the histograms (n, cells, cells, orientations) by their size in the 3 × 3 cells around each."""
    energy = np.pad((histograms**2).sum(axis=3), ((0, 0), (1, 1), (1, 1)), mode="edge")
    cells = histograms.shape[1]
    around = sum(energy[:, y : y + cells, x : x + cells] for y in range(3) for x in range(3)) / 9
    return histograms / np.sqrt(around + 1e-2 * histograms.shape[3])[..., None]


def principal_components(parts: Iterator[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Computes the mean, (values,), and the main directions, (values, COMPONENTS), of rows that come in parts."""
    count, total, products = 0, np.zeros(1), np.zeros((1, 1))
    for part in parts:
        wide = part.astype(np.float64)
        count += len(wide)
        total = total + wide.sum(axis=0)
        products = products + wide.T @ wide
    mean = total / max(count, 1)
    covariance = products / max(count, 1) - np.outer(mean, mean)
    _, directions = np.linalg.eigh(covariance)
    basis = directions[:, ::-1][:, :COMPONENTS]
    strongest = np.abs(basis).argmax(axis=0)  # the sign of a direction is arbitrary
    basis = basis * np.sign(basis[strongest, np.arange(basis.shape[1])])
    return mean.astype(np.float32), basis.astype(np.float32)
