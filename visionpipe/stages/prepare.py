"""Stage `prepare`: decodes the images of a source into RGB arrays of one size, in data/prepared/."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from visionpipe.data.decoding import Usable, decode_into
from visionpipe.data.listing import Listing, Rejected
from visionpipe.data.prepared import (
    PREPARED,
    channel_statistics,
    replacing_folder,
    write_manifest,
    write_split,
)
from visionpipe.data.sources import SOURCES
from visionpipe.data.splits import check_classes, check_splits, draw_splits
from visionpipe.data.understood import rows, summary, suspicions
from visionpipe.errors import DataError
from visionpipe.files import write_json
from visionpipe.project.params import Params
from visionpipe.project.paths import state_folder

REFUSED = "refused-manifest.json"


@dataclass
class Content:
    """What `prepare` has found in the source so far."""

    listing: Listing | None = None
    usable: list[Usable] = field(default_factory=list)
    quarantined: list[Rejected] = field(default_factory=list)


def prepare(params: Params) -> None:
    """Reads, decodes, splits and writes the images of `params.prepare`, and prints a summary.

    Only the pixels of a few images are in memory at a time; each image takes some 300 bytes more.

    Raises:
        DataError: no images, a single class, a class without a training image, or an empty split. What was found is
            written to `.visionpipe/refused-manifest.json`.
    """
    content, refused = Content(), state_folder() / REFUSED
    try:
        manifest = write_prepared(params, content)
    except DataError as error:
        if content.listing is None:
            raise
        write_refusal(refused, str(error), content)
        raise DataError(f"{error}; all files and reasons: {os.path.relpath(refused)}") from None
    refused.unlink(missing_ok=True)
    print(summary(manifest))


def write_prepared(params: Params, content: Content) -> dict[str, Any]:
    """Writes the prepared data and returns their manifest; fills `content` on the way."""
    config = params.prepare
    listing = content.listing = SOURCES[config.source](config)
    check_classes(listing, config.path)
    with replacing_folder(PREPARED) as folder:
        spool = folder / "decoded"
        usable, quarantined = decode_into(spool, listing, config, params.threads)
        content.usable, content.quarantined = usable, quarantined
        splits = draw_splits(usable, listing.splits, config, params.seed)
        check_splits(splits, usable, quarantined, listing)
        images = np.memmap(spool, np.uint8, "r", shape=(len(usable), *config.size, 3))
        positions = {name: position for position, name in enumerate(listing.classes)}
        for split, rows_of_split in splits.items():
            labels = [positions[usable[row].class_name] for row in rows_of_split]
            names = [usable[row].file for row in rows_of_split]
            write_split(folder, split, images, rows_of_split, labels, names)
        channel_mean, channel_std = channel_statistics(images, splits["train"])
        spool.unlink()
        return write_manifest(
            folder,
            size=config.size,
            interpolation=config.interpolation,
            crop_ratio=config.crop_ratio,
            classes=list(listing.classes),
            channel_mean=channel_mean,
            channel_std=channel_std,
            quarantined=rows(quarantined),
            warnings=[*listing.notes, *suspicions(splits, usable, listing.classes)],
        )


def write_refusal(file: Path, error: str, content: Content) -> None:
    """Writes what was found in data that were refused: `error`, classes and their usable images, files and reasons."""
    assert content.listing
    counts = dict.fromkeys(content.listing.classes, 0)
    for image in content.usable:
        counts[image.class_name] += 1
    refusal = {
        "error": error,
        "usable": counts,
        "quarantined": rows(content.quarantined),
        "warnings": list(content.listing.notes),
    }
    write_json(file, refusal)
