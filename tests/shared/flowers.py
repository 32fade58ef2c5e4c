"""Draws random pictures of three kinds of flowers, for the folder `photos` of the Quickstart."""

import math
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

# Name → (the smallest number of petals, the largest one, their colour).
FLOWERS = {"daisy": (9, 14, (240, 240, 235)), "rose": (5, 7, (190, 40, 60)), "tulip": (2, 4, (225, 130, 40))}
SIZES = ((96, 72), (80, 96), (64, 64))  # width, height
SHARES = {"daisy": 0.5, "rose": 0.3, "tulip": 0.2}


def write_photos(folder: Path, count: int, seed: int = 0) -> Path:
    """Writes `count` pictures into class folders. Half of them are daisies."""
    random = np.random.default_rng(seed)
    for name, share in SHARES.items():
        (folder / name).mkdir(parents=True)
        for index in range(round(count * share)):
            flower(name, random).save(folder / name / f"{index:03d}.png")
    return folder


def flower(name: str, random: np.random.Generator) -> Image.Image:
    """Draws one flower on a meadow. The colours vary so much that some pictures look like another kind of flower."""
    least, most, colour = FLOWERS[name]
    width, height = SIZES[random.integers(len(SIZES))]
    meadow = tuple(int(v) for v in random.normal((70, 120, 60), 25, 3).clip(0, 255))
    image = Image.new("RGB", (width, height), meadow)
    draw = ImageDraw.Draw(image)
    x, y = random.uniform(0.35, 0.65, 2) * (width, height)
    radius, turn, petals = (
        random.uniform(0.15, 0.3) * min(width, height),
        random.uniform(0, 6),
        random.integers(least, most + 1),
    )
    shade = tuple(int(v) for v in random.normal(colour, 35).clip(0, 255))
    for petal in range(petals):
        angle = turn + 2 * math.pi * petal / petals
        px, py, size = (
            x + radius * math.cos(angle),
            y + radius * math.sin(angle),
            radius * 2.4 / math.sqrt(petals),
        )
        draw.ellipse((px - size, py - size, px + size, py + size), shade)
    heart = radius * random.uniform(0.3, 0.6)
    draw.ellipse((x - heart, y - heart, x + heart, y + heart), (230, 190, 60))
    noise = random.normal(0, 14, (height, width, 3))
    noisy = (np.asarray(image.filter(ImageFilter.GaussianBlur(1))) + noise).clip(0, 255).astype(np.uint8)
    return Image.fromarray(noisy)
