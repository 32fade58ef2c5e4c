"""Stage `prepare`: decodes the images of a source into arrays of one size, in data/prepared/."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from visionpipe.data.config import PrepareConfig
from visionpipe.data.decisions import decided_lines, read_decisions
from visionpipe.data.decoding import Usable, decode_into
from visionpipe.data.duplicates import (
    AFFORDABLE,
    PLAIN,
    TURNS,
    equal_copies,
    find_copies,
    refuse_copies,
    still_copies,
    superfluous,
)
from visionpipe.data.groups import group_notes, join_groups, missing_splits, with_groups
from visionpipe.data.labels import label_matrix
from visionpipe.data.listing import Listing, Rejected, UnclearFolders
from visionpipe.data.losses import losses
from visionpipe.data.measures import read_measured
from visionpipe.data.prepared import (
    PREPARED,
    channel_statistics,
    replacing_folder,
    write_folds,
    write_manifest,
    write_measures,
    write_metadata,
    write_split,
    write_weights,
)
from visionpipe.data.sources import list_source
from visionpipe.data.splits import (
    check_classes,
    check_splits,
    draw_folds,
    draw_splits,
)
from visionpipe.data.understood import left_out_rows, summary, suspicions
from visionpipe.doctor.checkup import checkup
from visionpipe.errors import DataError
from visionpipe.files import write_json
from visionpipe.project.params import Params
from visionpipe.project.paths import state_folder
from visionpipe.tasks import TASKS

REFUSED = "refused-manifest.json"
DECODED = "decoded"  # the pictures of the last run


@dataclass
class Content:
    """What `prepare` has found in the source so far."""

    listing: Listing | None = None
    usable: list[Usable] = field(default_factory=list)
    quarantined: list[Rejected] = field(default_factory=list)


def prepare(params: Params) -> None:
    """Reads, decodes, splits and writes the images of `params.prepare`, and prints a summary.

    Only the pixels of a few images are in memory at a time; each image takes some 1,000 bytes more.

    Raises:
        DataError: no images, a single class, a class without a training image, or an empty split. What was found is
            written to `.visionpipe/refused-manifest.json`.
    """
    content, refused = Content(), state_folder() / REFUSED
    try:
        manifest = write_prepared(params, content)
    except DataError as error:
        if isinstance(error, UnclearFolders):
            content.listing = error.listing
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
    listing = with_groups(list_source(config, TASKS[params.task].several), config)
    listing = content.listing = decisions.applied_to(listing)
    check_classes(listing, config.path)
    with replacing_folder(PREPARED) as folder:
        usable, quarantined, images, records = decode_into(
            state_folder() / DECODED, listing, config, params.threads
        )
        usable = decisions.with_groups(usable)
        thumbnails = folder / "thumbnails"
        measures = measure_copies(usable, records, thumbnails, config)
        usable, rows_of, left_out = decide_on_copies(usable, measures["copies"], listing.splits, params)
        measures["copies"] = still_copies(measures["copies"], rows_of)
        quarantined += left_out
        content.usable, content.quarantined = usable, quarantined
        splits = draw_splits(usable, listing.splits, config, params.seed)
        check_splits(splits, usable, quarantined, listing, config.has_groups)
        labels = label_array(usable, listing.classes)
        for split, chosen in splits.items():
            rows = [rows_of[row] for row in chosen]
            write_split(folder, split, images, rows, labels[chosen], [usable[row].file for row in chosen])
            write_measures(folder, split, measures, rows)
            if listing.columns:
                write_metadata(folder, split, [usable[row].metadata for row in chosen])
        write_weights(folder, [usable[row].weight for row in splits["train"]])
        if config.folds:
            write_folds(folder, splits, draw_folds(usable, splits, config.folds, params.seed))
        channel_mean, channel_std = channel_statistics(images, [rows_of[row] for row in splits["train"]])
        thumbnails.unlink(missing_ok=True)
        drawn_groups = missing_splits(listing.splits, config) if config.has_groups else ()
        findings, remarks = checkup(folder, list(listing.classes), listing.splits)
        return write_manifest(
            folder,
            **config.frame_options,
            **config.decode_options,
            task=params.task,
            classes=list(listing.classes),
            channel_mean=channel_mean,
            channel_std=channel_std,
            quarantined=left_out_rows(quarantined),
            warnings=[
                *listing.notes,
                *group_notes(usable, splits, listing.splits, config, params.seed),
                *decisions.warnings(usable, quarantined),
                *suspicions(splits, usable, listing.classes, drawn_groups),
                *losses(usable, config),
                *remarks,
            ],
            findings=findings,
            columns=list(listing.columns),
            decisions=decisions.applied(usable, quarantined),
        )


def label_array(usable: list[Usable], classes: Sequence[str]) -> np.ndarray:
    """Returns the labels as positions in the classes, int32 (n,), or int8 (n, classes) where an image has several."""
    sets = [image.labels for image in usable if image.labels is not None]
    if sets:
        return label_matrix(sets, classes)
    positions = {name: position for position, name in enumerate(classes)}
    return np.array([positions[image.class_name] for image in usable], np.int32)


def measure_copies(
    usable: list[Usable], records: np.ndarray, thumbnails: Path, config: PrepareConfig
) -> dict[str, np.ndarray]:
    """Returns the measures of all images, with `digest`, and with the numbers of their groups of copies in `copies`.

    Where nothing depends on the copies, nearly the same pictures are sought in up to AFFORDABLE images only, and those
    that are cropped or turned in none.
    """
    measures = read_measured(records, thumbnails)
    digests = np.frombuffer(b"".join(image.digest for image in usable), np.uint8).reshape(-1, 32)
    if config.duplicates is not None:
        copies = find_copies(digests, measures, PLAIN + TURNS, align=True)
    elif len(usable) <= AFFORDABLE:
        copies = find_copies(digests, measures)
    else:
        copies = equal_copies(digests)
    return measures | {"digest": digests, "copies": copies}


def decide_on_copies(
    usable: list[Usable], copies: np.ndarray, given: frozenset[str], params: Params
) -> tuple[list[Usable], list[int], list[Rejected]]:
    """Does what `prepare.duplicates` says.

    Args:
        copies: int (n,), the number of each image's group of copies, or -1.
        given: the splits that the source has.

    Returns:
        The images that stay, with the groups that they belong to; their rows among all images; and those left out.
    """
    reasons: dict[int, str] = {}
    match params.prepare.duplicates:
        case "error":
            refuse_copies(usable, copies)
        case "keep":
            order = np.argsort(copies, kind="stable")[np.count_nonzero(copies < 0) :]
            sets = [part.tolist() for part in np.split(order, np.flatnonzero(np.diff(copies[order])) + 1)]
            usable, reasons = join_groups(usable, sets, given, params.prepare, params.seed)
        case "drop":
            reasons = superfluous(usable, copies)
    stay = [row for row in range(len(usable)) if row not in reasons]
    left_out = [Rejected(usable[row].file, reason) for row, reason in sorted(reasons.items())]
    return [usable[row] for row in stay], stay, left_out


def write_refusal(file: Path, error: str, content: Content) -> None:
    """Writes what was found in data that were refused: `error`, classes and their usable images, files and reasons."""
    assert content.listing
    counts = dict.fromkeys(content.listing.classes, 0)
    for image in content.usable:
        for class_name in image.names:
            counts[class_name] += 1
    quarantined = content.quarantined
    if not quarantined and isinstance(content.listing.entries, list):  # refused before anything was decoded
        quarantined = [entry for entry in content.listing.entries if isinstance(entry, Rejected)]
    refusal = {
        "error": error,
        "usable": counts,
        "quarantined": left_out_rows(quarantined),
        "warnings": list(content.listing.notes),
    }
    write_json(file, refusal)
