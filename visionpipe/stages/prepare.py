"""Stage `prepare`: decodes the images of a source into arrays of one size, in data/prepared/."""

import numpy as np

from visionpipe.data.decoding import decode_into
from visionpipe.data.deep import PixelFormat
from visionpipe.data.losses import losses
from visionpipe.data.prepared import (
    PREPARED,
    channel_statistics,
    replacing_folder,
    write_manifest,
    write_split,
)
from visionpipe.data.sources import SOURCES
from visionpipe.data.splits import check_splits, draw_splits
from visionpipe.data.understood import summary, suspicions
from visionpipe.errors import DataError
from visionpipe.project.params import Params


def prepare(params: Params) -> None:
    """Reads, decodes, splits and writes the images of `params.prepare`, and prints a summary.

    Only the pixels of a few images are in memory at a time; each image takes some 300 bytes more.

    Raises:
        DataError: no images, a single class, a class without a training image, or an empty split.
    """
    config = params.prepare
    form = PixelFormat(**config.decode_options)
    listing = SOURCES[config.source](config)
    if len(listing.classes) < 2:
        classes = f"only the class {listing.classes[0]!r}" if listing.classes else "no class"
        raise DataError(f"{config.path} holds {classes}: expected one folder of images for each class")
    with replacing_folder(PREPARED) as folder:
        spool = folder / "decoded"
        usable, quarantined = decode_into(spool, listing, config, params.threads)
        splits = draw_splits(usable, listing.splits, config, params.seed)
        check_splits(splits, usable, quarantined, listing)
        images = np.memmap(spool, form.dtype, "r", shape=(len(usable), *config.size, form.channels))
        positions = {name: position for position, name in enumerate(listing.classes)}
        for split, rows in splits.items():
            labels = [positions[usable[row].class_name] for row in rows]
            write_split(folder, split, images, rows, labels, [usable[row].file for row in rows])
        channel_mean, channel_std = channel_statistics(images, splits["train"])
        spool.unlink()
        manifest = write_manifest(
            folder,
            **config.frame_options,
            **config.decode_options,
            classes=list(listing.classes),
            channel_mean=channel_mean,
            channel_std=channel_std,
            quarantined=[{"path": item.file, "reason": item.reason} for item in quarantined],
            warnings=[
                *listing.notes,
                *suspicions(splits, usable, listing.classes),
                *losses(usable, config),
            ],
        )
    print(summary(manifest))
