"""Finds pictures of bad quality: blank, dark, bright, blurred, tiny, or of an odd shape.

Dark, bright, blurred and odd are relative to the set, because night scenes, X-rays and panoramas are no faults where
all pictures are like that.
"""

import numpy as np

BLANK = 2.0  # standard deviation of the grey levels
DARK, BRIGHT = 20.0, 235.0  # mean grey level
FAR = 4.0  # robust deviations from the median
SHARP_SHARE = 0.05  # of the median sharpness
TINY = 16  # pixels of the shorter side
TINY_SHARE = 0.25  # of the median shorter side
ODD_RATIO = 3.0  # longer side to shorter side, times what is usual in the set
RARE = 0.05  # what more of the images have is how this set is, and no fault
ADVICE = {
    "blank": "almost one colour",
    "dark": "hardly any light",
    "bright": "overexposed",
    "blurred": "out of focus, or enlarged from few pixels",
    "tiny": "far smaller than the others",
    "odd ratio": "far wider or taller than the others: framing cuts off or squeezes most of it",
}


def find_quality(measures: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns kind → rows with this fault, the worst first. An image has at most one kind."""
    brightness, contrast, sharpness = (
        measures[name].astype(np.float64) for name in ("brightness", "contrast", "sharpness")
    )
    if not len(brightness):
        return {}
    height, width = measures["height"].astype(np.float64), measures["width"].astype(np.float64)
    shorter, ratio = np.minimum(height, width), np.maximum(height, width) / np.minimum(height, width)
    middle, spread = robust(brightness)
    blank = contrast < BLANK
    # Sharpness of pictures with little contrast is low whatever the focus; relative to the contrast it is not.
    focus = sharpness / np.maximum(contrast, BLANK) ** 2
    badness = {
        "blank": (blank, -contrast),
        "dark": ((brightness < DARK) & (brightness < middle - FAR * spread), -brightness),
        "bright": ((brightness > BRIGHT) & (brightness > middle + FAR * spread), brightness),
        "blurred": (focus < SHARP_SHARE * np.median(focus[~blank] if (~blank).any() else focus), -focus),
        "tiny": (
            ((shorter < TINY) | (shorter < TINY_SHARE * np.median(shorter))) & (shorter < np.median(shorter)),
            -shorter,
        ),
        "odd ratio": (ratio > ODD_RATIO * np.median(ratio), ratio),
    }
    found, taken = {}, np.zeros(len(brightness), bool)
    for kind, (bad, score) in badness.items():
        rows = np.flatnonzero(bad & ~taken)
        if kind != "blank" and len(rows) > max(RARE * len(brightness), 1):
            continue
        taken[rows] = True
        if len(rows):
            found[kind] = rows[np.argsort(-score[rows], kind="stable")]
    return found


def robust(values: np.ndarray) -> tuple[float, float]:
    """Returns the median, and the deviation that the median distance from it stands for in a normal distribution."""
    middle = float(np.median(values))
    return middle, max(1.4826 * float(np.median(np.abs(values - middle))), 1.0)
