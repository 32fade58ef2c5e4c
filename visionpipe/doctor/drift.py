"""Finds what differs between the splits: accuracy on another kind of pictures is that of another task."""

import math

import numpy as np

from visionpipe.data.measures import jpeg_quality
from visionpipe.data.prepared import counts_of
from visionpipe.doctor.findings import Images

LEAST = 0.15  # largest distance of two distribution functions that is no drift
SHARE = 0.1  # of the images that would have to change their class until both splits have the same shares


def find_drift(images: Images) -> list[tuple[str, str, float]]:
    """Returns (split, sentence, size) for each measure whose distribution differs from the training split's.

    Distributions are compared by Kolmogorov and Smirnov's distance, which must also be larger than chance allows
    (about one case in 100,000).
    """
    found = []
    measures = images.measures
    values = {
        "brightness": measures["brightness"],
        "contrast": measures["contrast"],
        "sharpness": measures["sharpness"],
        "height": measures["height"],
        "width": measures["width"],
        "bytes per pixel": measures["bytes"]
        / np.maximum(1, measures["height"].astype(np.int64) * measures["width"]),
        "JPEG quality (0: other formats)": jpeg_quality(measures["quantisation"]),
    }
    train = images.split == 0
    for number, split in enumerate(images.data.splits[1:], start=1):
        other = images.split == number
        if not other.any():
            continue
        chance = 2.5 * math.sqrt(1 / train.sum() + 1 / other.sum())
        for name, numbers in values.items():
            size = distance(numbers[train], numbers[other])
            if size > max(LEAST, chance):
                before, after = float(np.median(numbers[train])), float(np.median(numbers[other]))
                sentence = f"{name}: median {before:.4g} in train, {after:.4g} in {split}"
                found.append((split, sentence, round(size, 4)))
        classes = len(images.data.classes)
        shares = [np.array(counts_of(images.labels[mask], classes)) / mask.sum() for mask in (train, other)]
        apart = np.abs(shares[0] - shares[1])
        size = float(apart.max() if images.several else apart.sum() / 2)
        if size > max(SHARE, chance if images.several else chance * math.sqrt(classes) / 2):
            index = int(np.argmax(apart))
            sentence = (
                f"the share of the class {images.data.classes[index]!r}: {shares[0][index]:.1%} in train, "
                f"{shares[1][index]:.1%} in {split}"
            )
            found.append((split, sentence, round(size, 4)))
    return sorted(found, key=lambda item: (-item[2], item[:2]))


def distance(one: np.ndarray, other: np.ndarray) -> float:
    """Returns the largest distance between the distribution functions of two samples, (n,) and (m,)."""
    one, other = np.sort(one), np.sort(other)
    values = np.concatenate([one, other])
    below = [np.searchsorted(sample, values, side="right") / len(sample) for sample in (one, other)]
    return float(np.abs(below[0] - below[1]).max())
