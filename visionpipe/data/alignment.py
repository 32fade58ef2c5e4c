"""Aligns thumbnails: whether an affine map of one picture, with another brightness and contrast, gives the other.

The map is estimated by Gauss-Newton steps on the differences of pixels (Lucas and Kanade 1981; Baker and Matthews 2004,
inverse compositional), first on blurred thumbnails. All pairs of a batch are solved together.
"""

import numpy as np

# Rounds: how often the thumbnails are blurred, the number of steps, and the least correlation after it.
ROUNDS = ((2, 6, 0.8), (2, 8, 0.92), (1, 10, 0.98))
MOST_RESIDUAL = 0.35  # of any eighth by eighth of the picture, relative to the picture's deviation
LEAST_OVERLAP = 0.6
# Simple pictures, such as one thing on a plain ground, agree after many maps. So the map must be that of a crop or of a
# slight rotation, and details and colours must agree too.
LEAST_DETAIL = 0.8  # correlation of what three blurs take away
LARGEST_SCALE, LARGEST_STRETCH, LARGEST_TURN = 1.35, 1.15, 12.0  # ratio, ratio of two axes, degrees
COLOUR_CORRELATION, COLOUR_DIFFERENCE = 0.95, 8.0  # of deviations from grey; one of the two is enough
SURE_DETAIL, SURE_CORRELATION = (
    0.95,
    0.8,
)  # details that agree so well need colours that correlate so much only
BLOCKS = 4


def aligned(one: np.ndarray, other: np.ndarray, colours: np.ndarray, other_colours: np.ndarray) -> np.ndarray:
    """Whether thumbnails agree after alignment, bool (n,).

    Args:
        one, other: uint8 (n, side, side), grey.
        colours, other_colours: uint8 (n, few, few, 3), the mean colours of parts of the same pictures.
    """
    one, other = one.astype(np.float32), other.astype(np.float32)
    maps = np.tile(np.eye(2, 3, dtype=np.float32), (len(one), 1, 1))
    alive = np.arange(len(one))
    residual = np.zeros(len(one))
    for blurs, steps, least in ROUNDS:
        if not len(alive):
            break
        first, second = one[alive], other[alive]
        for _ in range(blurs):
            first, second = blurred(first), blurred(second)
        maps, correlation, residual, overlap = estimate(first, second, maps, steps)
        good = (correlation >= least) & (overlap >= LEAST_OVERLAP)
        alive, maps, residual = alive[good], maps[good], residual[good]
    alive, maps = alive[residual <= MOST_RESIDUAL], maps[residual <= MOST_RESIDUAL]
    details = detail_correlation(one[alive], other[alive], maps)
    correlation, difference = compared_colours(colours[alive], other_colours[alive], maps, one.shape[1])
    same_colours = (correlation >= COLOUR_CORRELATION) | (difference <= COLOUR_DIFFERENCE)
    same_colours |= (details >= SURE_DETAIL) & (correlation >= SURE_CORRELATION)
    agree = is_crop(maps) & (details >= LEAST_DETAIL) & same_colours
    result = np.zeros(len(one), bool)
    result[alive[agree]] = True
    return result


def is_crop(maps: np.ndarray) -> np.ndarray:
    """Whether affine maps, (n, 2, 3), are those of a crop or of a slight rotation: bool (n,)."""
    linear = maps[:, :, :2]
    larger, smaller = np.linalg.svd(linear, compute_uv=False).T
    scale = np.sqrt(larger * smaller)
    turn = np.arctan2(linear[:, 1, 0] - linear[:, 0, 1], linear[:, 0, 0] + linear[:, 1, 1])
    return (
        (larger <= LARGEST_STRETCH * smaller)
        & (scale <= LARGEST_SCALE)
        & (scale >= 1 / LARGEST_SCALE)
        & (np.abs(np.degrees(turn)) <= LARGEST_TURN)
    )


def detail_correlation(one: np.ndarray, other: np.ndarray, maps: np.ndarray) -> np.ndarray:
    """Returns the correlation of the details of aligned thumbnails, float32 (n, side, side): (n,)."""
    first, second = (pictures - blurred(blurred(blurred(pictures))) for pictures in (one, other))
    x, y = places(one.shape[1])
    warped, inside = sample(second, maps, x, y)
    return compared(first.reshape(len(one), x.size), warped, inside)[1]


def compared_colours(
    one: np.ndarray, other: np.ndarray, maps: np.ndarray, side: int
) -> tuple[np.ndarray, np.ndarray]:
    """Compares the deviations from grey of aligned pictures, uint8 (n, few, few, 3).

    `maps` are those of thumbnails of `side` × `side` pixels.

    Returns:
        Their correlation, and their root mean square difference in [0, 255]: (n,) each.
    """
    x, y = places(one.shape[1])
    smaller = maps.copy()
    smaller[:, :, 2] *= one.shape[1] / side
    channels = [sample(other[..., channel].astype(np.float32), smaller, x, y) for channel in range(3)]
    warped, inside = np.stack([values for values, _ in channels], axis=-1), channels[0][1][..., None]
    pictures = one.reshape(len(one), x.size, 3).astype(np.float32), warped
    first, second = ((colours - colours.mean(axis=-1, keepdims=True)) * inside for colours in pictures)
    scale = np.sqrt((first**2).sum(axis=(1, 2)) * (second**2).sum(axis=(1, 2)))
    correlation = (first * second).sum(axis=(1, 2)) / np.maximum(scale, 1e-6)
    count = np.maximum(3 * inside.sum(axis=(1, 2)), 1)
    return correlation, np.sqrt(((first - second) ** 2).sum(axis=(1, 2)) / count)


def places(side: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns x and y of the pixels of a picture, relative to its centre: float32 (side · side,) each."""
    along = np.arange(side, dtype=np.float32) - (side - 1) / 2
    y, x = (grid.ravel() for grid in np.meshgrid(along, along, indexing="ij"))
    return x, y


def blurred(pictures: np.ndarray) -> np.ndarray:
    """Blurs (n, side, side) by 1 2 1 along both axes."""
    for axis in (1, 2):
        padded = np.pad(pictures, [(1, 1) if a == axis else (0, 0) for a in range(3)], mode="edge")
        low, middle, high = (
            np.take(padded, np.arange(s, s + pictures.shape[axis]), axis=axis) for s in range(3)
        )
        pictures = (low + 2 * middle + high) / 4
    return pictures


def estimate(
    template: np.ndarray, picture: np.ndarray, maps: np.ndarray, steps: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Improves affine `maps`, float32 (n, 2, 3), from the template's places to the picture's, relative to the centre.

    Returns:
        The maps; the correlation of the overlap; the largest difference of a block, relative to the template's
        deviation; and the share of the template that overlaps: each (n,).
    """
    count, side = template.shape[:2]
    x, y = places(side)
    down, right = np.gradient(template, axis=(1, 2))
    down, right = down.reshape(count, -1), right.reshape(count, -1)
    flat = template.reshape(count, -1)
    slopes = np.stack([right * x, right * y, right, down * x, down * y, down], axis=1)
    scale = np.array([side / 2, side / 2, 1] * 2, np.float32)
    slopes /= scale[:, None]
    for _ in range(steps):
        warped, inside = sample(picture, maps, x, y)
        difference, _, _ = compared(flat, warped, inside)
        weighted = slopes * inside[:, None]
        normal = weighted @ slopes.swapaxes(1, 2)
        normal += np.eye(6, dtype=np.float32) * (
            1e-3 * np.trace(normal, axis1=1, axis2=2)[:, None, None] / 6 + 1e-3
        )
        change = np.linalg.solve(normal, weighted @ difference[:, :, None])[:, :, 0] / scale
        maps = compose(maps, np.clip(change, -3, 3).reshape(-1, 2, 3))
    warped, inside = sample(picture, maps, x, y)
    difference, correlation, deviation = compared(flat, warped, inside)
    block = side // BLOCKS
    squares, shares = (
        values.reshape(count, BLOCKS, block, BLOCKS, block).sum(axis=(2, 4))
        for values in (difference**2 * inside, inside)
    )
    worst = np.sqrt((squares / np.maximum(shares, block)).max(axis=(1, 2)))
    scales = np.abs(np.linalg.det(maps[:, :, :2]))
    overlap = np.where((scales > 0.4) & (scales < 2.5), inside.mean(axis=1), 0)
    return maps, correlation, worst / np.maximum(deviation, 1e-6), overlap


def sample(
    picture: np.ndarray, maps: np.ndarray, x: np.ndarray, y: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Samples (n, side, side) bilinearly at the mapped places.

    Returns the values, and 1 where a place lies in the picture, else 0: float32 (n, side · side).
    """
    count, side = picture.shape[:2]
    middle = (side - 1) / 2
    column, row = (
        maps[:, i, 0, None] * x + maps[:, i, 1, None] * y + maps[:, i, 2, None] + middle for i in (0, 1)
    )
    inside = ((column >= -0.5) & (column <= side - 0.5) & (row >= -0.5) & (row <= side - 0.5)).astype(
        np.float32
    )
    column, row = np.clip(column, 0, side - 1.001), np.clip(row, 0, side - 1.001)
    left, top = column.astype(np.int32), row.astype(np.int32)
    right_share, lower_share = column - left, row - top
    corner = np.arange(count, dtype=np.int32)[:, None] * (side * side) + top * side + left
    flat = picture.ravel()
    upper = flat[corner] * (1 - right_share) + flat[corner + 1] * right_share
    lower = flat[corner + side] * (1 - right_share) + flat[corner + side + 1] * right_share
    return upper * (1 - lower_share) + lower * lower_share, inside


def compared(
    template: np.ndarray, warped: np.ndarray, inside: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Fits brightness and contrast of `warped` to `template`, (n, pixels), in the overlap.

    Returns:
        Template minus fitted picture, (n, pixels); their correlation, (n,); the template's standard deviation, (n,).
    """
    total = np.maximum(inside.sum(axis=1, keepdims=True), 1)
    centred = [(p - (p * inside).sum(axis=1, keepdims=True) / total) * inside for p in (template, warped)]
    own, others = ((p**2).sum(axis=1, keepdims=True) for p in centred)
    product = (centred[0] * centred[1]).sum(axis=1, keepdims=True)
    gain = np.clip(product / np.maximum(others, 1e-6), 0, 4)
    correlation = product / np.maximum(np.sqrt(own * others), 1e-6)
    return centred[0] - gain * centred[1], correlation[:, 0], np.sqrt(own / total)[:, 0]


def compose(maps: np.ndarray, change: np.ndarray) -> np.ndarray:
    """Returns `maps` after `change`, which was estimated for the template: identity + change comes first."""
    full = np.zeros((len(maps), 3, 3), np.float32)
    full[:, :2], full[:, 2, 2] = maps, 1
    step = np.zeros_like(full)
    step[:, :2], step[:, 2, 2] = change + np.eye(2, 3, dtype=np.float32), 1
    return (full @ step)[:, :2]
