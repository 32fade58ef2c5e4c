"""Finds copies: pictures that are the same, pixel for pixel or nearly.

`find_copies` joins three kinds of evidence into groups:

- equal pixels, by their sha256;
- perceptual hashes of 255 bits that differ in at most HASH_DISTANCE, also for the mirrored or turned picture, of equal
  colours. It finds other compression, size, brightness, contrast and blur, at 28 pixels and above;
- thumbnails that an affine map brings into agreement, from ALIGNABLE pixels on: slight crops and rotations.

Time grows with the square of the number of images, memory does not.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from visionpipe.data.alignment import aligned
from visionpipe.data.decoding import Usable
from visionpipe.data.gradients import oriented_gradients
from visionpipe.data.measures import CHUNK, COLOUR_SIDE, HASH_SIDE, alignable
from visionpipe.errors import DataError

HASH_DISTANCE = 32  # bits of 255
LEAST_CONTRAST = 5.0  # standard deviation of grey levels; below it the bits of a hash are noise
GREY = 8.0  # deviation from grey that is no colour, of 255
COLOUR_CORRELATION = 0.8
FILTER_BITS = 96
TILE = 1024, 2048  # rows and columns whose products are in memory together
AT_ONCE = 2**18  # pairs
ALIGNED_AT_ONCE = 512
MOST = 300_000  # images
AFFORDABLE = 50_000  # images that are compared by hashes in less than a tenth of the time of decoding them
NEIGHBOURS = 8  # pictures with the most similar gradients that are aligned with each picture
LEAST_SIMILARITY = 0.5  # correlation of the gradients of thumbnails that are aligned
PLAIN = ("same", "mirrored")
TURNS = ("turned by 90°", "turned by 180°", "turned by 270°", "upside down", "transposed", "transversed")


def turned(grids: np.ndarray, turn: str) -> np.ndarray:
    """Turns or mirrors pictures, (n, side, side, …)."""
    match turn:
        case "mirrored":
            return grids[:, :, ::-1]
        case "upside down":
            return grids[:, ::-1]
        case "turned by 180°":
            return grids[:, ::-1, ::-1]
        case "transposed":
            return grids.swapaxes(1, 2)
        case "transversed":
            return grids.swapaxes(1, 2)[:, ::-1, ::-1]
        case "turned by 90°":
            return grids.swapaxes(1, 2)[:, ::-1]
        case "turned by 270°":
            return grids.swapaxes(1, 2)[:, :, ::-1]
    return grids


def turned_hashes(hashes: np.ndarray, turn: str) -> np.ndarray:
    """Returns the hashes, uint8 (n, 32), of the turned or mirrored pictures.

    Reversing an axis changes the sign of the odd frequencies along it, and nothing else.
    """
    bits = np.unpackbits(hashes, axis=1).reshape(-1, HASH_SIDE, HASH_SIDE)
    if turn in ("transposed", "transversed", "turned by 90°", "turned by 270°"):
        bits = bits.swapaxes(1, 2)
    odd = np.arange(HASH_SIDE) % 2
    if turn in ("upside down", "turned by 180°", "transversed", "turned by 90°"):
        bits = bits ^ odd[:, None].astype(np.uint8)
    if turn in ("mirrored", "turned by 180°", "transversed", "turned by 270°"):
        bits = bits ^ odd[None].astype(np.uint8)
    return np.packbits(bits.reshape(len(bits), HASH_SIDE**2), axis=1)


@dataclass
class Groups:
    """Sets of rows that grow as pairs are added; `label[row]` is the first row of the row's set."""

    label: np.ndarray

    def add(self, left: np.ndarray, right: np.ndarray) -> None:
        """Joins the sets of `left[i]` and `right[i]` for every i."""
        label = self.label
        while len(left):
            one, other = label[left], label[right]
            np.minimum.at(label, np.maximum(one, other), np.minimum(one, other))
            while not np.array_equal(label, label[label]):
                label[:] = label[label]
            apart = label[left] != label[right]
            left, right = left[apart], right[apart]

    def numbered(self) -> np.ndarray:
        """Returns int32 (n,): the sets of two or more rows, numbered by their first rows; -1 for all other rows."""
        sizes = np.bincount(self.label, minlength=len(self.label))
        first = np.flatnonzero(sizes > 1)
        numbers = np.full(len(self.label), -1, np.int32)
        numbers[first] = np.arange(len(first))
        return numbers[self.label]


def find_copies(
    digests: np.ndarray,
    measures: dict[str, np.ndarray],
    turns: tuple[str, ...] = PLAIN,
    align: bool = False,
    quiet: bool = False,
) -> np.ndarray:
    """Returns the group of copies of each image, int32 (n,), numbered from 0; -1 for an image without a copy.

    Args:
        digests: uint8 (n, bytes) of the pixels.
        measures: those of `measures.read_measured`.
        turns: which mirrored and turned pictures are copies too, of PLAIN and TURNS.
        align: also find crops and rotations, if there are thumbnails.
        quiet: show no progress.

    Raises:
        DataError: there are more than MOST images.
    """
    count = len(digests)
    if count > MOST:
        raise DataError(
            f"copies are sought in sets of up to {MOST:,} images, and there are {count:,}: "
            "remove prepare.duplicates, or divide the set"
        )
    groups = Groups(np.arange(count))
    if count:
        groups.add(*equal_rows(digests))
    rows = np.flatnonzero((measures["contrast"] >= LEAST_CONTRAST) & (groups.label == np.arange(count)))
    hashes, colours = measures["hash"][rows], measures["colour"][rows]
    tiles = sum(1 for _ in tile_corners(len(rows)))
    with tqdm(total=tiles * len(turns), desc="copies", unit=" blocks", disable=quiet or None) as progress:
        for turn in turns:
            for left, right in near_hashes(hashes, turned_hashes(hashes, turn), progress):
                new = groups.label[rows[left]] != groups.label[rows[right]]
                left, right = left[new], right[new]
                alike = same_colours(colours[left], turned(colours[right], turn))
                groups.add(rows[left[alike]], rows[right[alike]])
    if align and "thumbnail" in measures:
        rows = rows[alignable(measures)[rows]]
        thumbnails, colours = measures["thumbnail"][rows], measures["colour"][rows]
        for turn in PLAIN:
            left, right = similar_thumbnails(thumbnails, turn, quiet)
            for start in tqdm(range(0, len(left), ALIGNED_AT_ONCE), f"crops, {turn}", disable=quiet or None):
                one, other = left[start : start + ALIGNED_AT_ONCE], right[start : start + ALIGNED_AT_ONCE]
                new = groups.label[rows[one]] != groups.label[rows[other]]
                one, other = one[new], other[new]
                alike = aligned(
                    thumbnails[one],
                    turned(thumbnails[other], turn),
                    colours[one],
                    turned(colours[other], turn),
                )
                groups.add(rows[one[alike]], rows[other[alike]])
    return groups.numbered()


def equal_copies(digests: np.ndarray) -> np.ndarray:
    """Returns the groups of equal pictures only, like `find_copies`."""
    groups = Groups(np.arange(len(digests)))
    groups.add(*equal_rows(digests))
    return groups.numbered()


def equal_rows(digests: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns pairs of rows that join all equal rows of uint8 (n, bytes)."""
    keys = np.ascontiguousarray(digests).view(f"V{digests.shape[1]}").ravel()
    order = np.argsort(keys, kind="stable")
    same = keys[order[1:]] == keys[order[:-1]]
    return order[:-1][same], order[1:][same]


def tile_corners(count: int) -> Iterator[tuple[int, int]]:
    """Yields the first row and column of the tiles that cover the pairs left < right."""
    rows, columns = TILE
    for top in range(0, count, rows):
        for side in range(top // columns * columns, count, columns):
            yield top, side


def near_hashes(
    hashes: np.ndarray, others: np.ndarray, progress: tqdm
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields pairs (left, right), left < right, of which `hashes[left]` and `others[right]` are near.

    The FILTER_BITS bits that divide the images most evenly are compared by products of matrices; pairs that are near
    in these are compared in all.
    """
    if len(hashes) < 2:
        return
    bits = np.unpackbits(hashes, axis=1)
    chosen = np.argsort(np.abs(bits.mean(axis=0, dtype=np.float64) - 0.5), kind="stable")[:FILTER_BITS]
    one = bits[:, chosen].astype(np.float32) * 2 - 1
    other = np.unpackbits(others, axis=1)[:, chosen].astype(np.float32) * 2 - 1
    words, other_words = (np.ascontiguousarray(packed).view(np.uint64) for packed in (hashes, others))
    rows, columns = TILE
    for top, side in tile_corners(len(hashes)):
        products = one[top : top + rows] @ other[side : side + columns].T
        near = np.flatnonzero(products >= FILTER_BITS - 2 * HASH_DISTANCE)
        for start in range(0, len(near), AT_ONCE):
            left, right = np.divmod(near[start : start + AT_ONCE], products.shape[1])
            left, right = left + top, right + side
            upper = left < right
            left, right = left[upper], right[upper]
            distance = np.bitwise_count(words[left] ^ other_words[right]).sum(axis=1)
            yield left[distance <= HASH_DISTANCE], right[distance <= HASH_DISTANCE]
        progress.update()


def same_colours(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Whether the deviations from grey of uint8 (n, side, side, 3) correlate, or hardly differ: bool (n,)."""
    parts = []
    for start in range(0, len(one), AT_ONCE // COLOUR_SIDE):
        pair = [
            colours[start : start + AT_ONCE // COLOUR_SIDE].astype(np.float32) for colours in (one, other)
        ]
        first, second = (
            (colours - colours.mean(axis=-1, keepdims=True)).reshape(len(colours), -1) for colours in pair
        )
        scale = np.sqrt((first**2).sum(axis=1) * (second**2).sum(axis=1))
        correlation = (first * second).sum(axis=1) / np.maximum(scale, 1e-6)
        difference = np.sqrt(((first - second) ** 2).mean(axis=1))
        parts.append((correlation >= COLOUR_CORRELATION) | (difference <= GREY))
    return np.concatenate(parts) if parts else np.zeros(0, bool)


def similar_thumbnails(thumbnails: np.ndarray, turn: str, quiet: bool) -> tuple[np.ndarray, np.ndarray]:
    """Returns pairs left < right of pictures with similar gradients, NEIGHBOURS for each picture.

    `thumbnails`: uint8 (n, side, side).
    """
    count, pairs = len(thumbnails), [np.zeros(0, np.int64)]
    one, other = (described(grids) for grids in (thumbnails, turned(thumbnails, turn)))
    step = max(1, 2 * TILE[0] * TILE[1] // max(count, 1))
    for start in tqdm(range(0, count, step), f"similar, {turn}", unit=" blocks", disable=quiet or None):
        products = one[start : start + step] @ other.T
        itself = np.arange(len(products))
        products[itself, start + itself] = -1
        best = np.argpartition(-products, min(NEIGHBOURS, count - 1) - 1, axis=1)[:, :NEIGHBOURS]
        row, column = np.nonzero(np.take_along_axis(products, best, axis=1) >= LEAST_SIMILARITY)
        one_of_pair, other_of_pair = start + row, best[row, column]
        pairs.append(np.minimum(one_of_pair, other_of_pair) * count + np.maximum(one_of_pair, other_of_pair))
    left, right = np.divmod(np.unique(np.concatenate(pairs)), max(count, 1))
    return left, right


def described(thumbnails: np.ndarray) -> np.ndarray:
    """Returns the gradients of 4 × 4 parts of thumbnails, normalised: float32 (n, values)."""
    parts = [
        oriented_gradients(thumbnails[start : start + CHUNK].astype(np.float32), 4)
        for start in range(0, len(thumbnails), CHUNK)
    ]
    return normalised(np.concatenate(parts).reshape(len(thumbnails), -1))


def normalised(rows: np.ndarray) -> np.ndarray:
    """Returns rows of mean 0 and length 1."""
    rows = rows - rows.mean(axis=1, keepdims=True)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-6)


# What `prepare.duplicates` asks for ----------------------------------------------------------------------


def superfluous(usable: list[Usable], copies: np.ndarray) -> dict[int, str]:
    """Returns the rows of the images to leave out so that one of each group stays → the reason.

    The images of the most frequent class count; where there is no such class, no image of the group stays. Of these the
    first in the test split stays, or else in validation, or else in training.
    """
    rows_of: dict[int, list[int]] = defaultdict(list)
    for row in np.flatnonzero(copies >= 0).tolist():
        rows_of[int(copies[row])].append(row)
    reasons: dict[int, str] = {}
    for rows in rows_of.values():
        (name, most), *others = Counter(usable[row].class_name for row in rows).most_common()
        against = {row: other for row in rows for other in rows if usable[row].contradicts(usable[other])}
        if against and others[0][1] == most:
            for row in rows:
                other = against.get(row, rows[0])
                where = "is in another class" if usable[row].labels is None else "has other labels"
                reasons[row] = f"a copy of {usable[other].file!r}, which {where}"
            continue
        order = {"test": 0, "validation": 1}
        of_class = [row for row in rows if usable[row].class_name == name]
        stays = min(of_class, key=lambda row: (order.get(usable[row].split or "", 2), row))
        reasons |= {row: f"a copy of {usable[stays].file!r}" for row in rows if row != stays}
    return reasons


def refuse_copies(usable: list[Usable], copies: np.ndarray) -> None:
    """Raises DataError if there are copies."""
    rows = np.flatnonzero(copies >= 0)
    if len(rows):
        first, second = np.flatnonzero(copies == copies[rows[0]])[:2]
        raise DataError(
            f"{len(rows):,} images are copies of each other, such as {usable[first].file!r} and "
            f"{usable[second].file!r}: remove them, or set prepare.duplicates to keep or drop"
        )


def still_copies(copies: np.ndarray, stay: list[int]) -> np.ndarray:
    """Returns the groups, (n,), with -1 for images that have no copy among the rows that stay."""
    numbers = copies[stay]
    sizes = np.bincount(numbers[numbers >= 0], minlength=int(copies.max(initial=-1)) + 1)
    return np.where((copies >= 0) & (np.append(sizes, 0)[copies] > 1), copies, -1).astype(np.int32)


def copies_between(copies: dict[str, np.ndarray], split: str, others: Sequence[str]) -> np.ndarray:
    """Whether an image of `split` has a copy in one of the `others`, bool (n,).

    `copies`: split → the numbers of the images' groups, -1 for images without a copy.
    """
    elsewhere = np.concatenate([copies[other] for other in others])
    return (copies[split] >= 0) & np.isin(copies[split], elsewhere)
