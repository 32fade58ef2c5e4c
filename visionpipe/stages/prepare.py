"""Stage `prepare`: decodes the images of a source into RGB arrays of one size, in data/prepared/."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from visionpipe.data.decisions import decided_lines, read_decisions
from visionpipe.data.decoding import Usable, decode_into
from visionpipe.data.listing import Listing, Rejected
from visionpipe.data.losses import losses
from visionpipe.data.prepared import (
    PREPARED,
    channel_statistics,
    replacing_folder,
    write_folds,
    write_manifest,
    write_metadata,
    write_split,
    write_weights,
)
from visionpipe.data.sources import SOURCES
from visionpipe.data.splits import (
    check_classes,
    check_splits,
    draw_folds,
    draw_splits,
    group_notes,
    with_groups,
)
from visionpipe.data.understood import left_out_rows, summary, suspicions
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
    print(summary(manifest), *decided_lines(manifest), sep="\n")


def write_prepared(params: Params, content: Content) -> dict[str, Any]:
    """Writes the prepared data and returns their manifest; fills `content` on the way."""
    config = params.prepare
    decisions = read_decisions()
    listing = content.listing = decisions.applied_to(with_groups(SOURCES[config.source](config), config))
    check_classes(listing, config.path)
    with replacing_folder(PREPARED) as folder:
        spool = folder / "decoded"
        usable, quarantined = decode_into(spool, listing, config, params.threads)
        usable = decisions.with_groups(usable)
        content.usable, content.quarantined = usable, quarantined
        splits = draw_splits(usable, listing.splits, config, params.seed)
        check_splits(splits, usable, quarantined, listing, config.has_groups)
        images = np.memmap(spool, np.uint8, "r", shape=(len(usable), *config.size, 3))
        positions = {name: position for position, name in enumerate(listing.classes)}
        for split, rows in splits.items():
            labels = [positions[usable[row].class_name] for row in rows]
            write_split(folder, split, images, rows, labels, [usable[row].file for row in rows])
            if listing.columns:
                write_metadata(folder, split, [usable[row].metadata for row in rows])
        write_weights(folder, [usable[row].weight for row in splits["train"]])
        if config.folds:
            write_folds(folder, splits, draw_folds(usable, splits, config.folds, params.seed))
        channel_mean, channel_std = channel_statistics(images, splits["train"])
        spool.unlink()
        return write_manifest(
            folder,
            **config.frame_options,
            **config.decode_options,
            classes=list(listing.classes),
            channel_mean=channel_mean,
            channel_std=channel_std,
            quarantined=left_out_rows(quarantined),
            warnings=[
                *listing.notes,
                *group_notes(usable, splits, listing.splits, config, params.seed),
                *decisions.warnings(usable, quarantined),
                *suspicions(splits, usable, listing.classes),
                *losses(usable, config),
            ],
            columns=list(listing.columns),
            decisions=decisions.applied(usable, quarantined),
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
        "quarantined": left_out_rows(content.quarantined),
        "warnings": list(content.listing.notes),
    }
    write_json(file, refusal)
