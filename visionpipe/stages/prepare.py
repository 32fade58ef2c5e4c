"""Stage `prepare`: decodes the images of a source into RGB arrays of one size, in data/prepared/."""

from pathlib import Path

import numpy as np

from visionpipe.data.config import PrepareConfig
from visionpipe.data.decoding import Usable, decode_into
from visionpipe.data.duplicates import (
    AFFORDABLE,
    PLAIN,
    TURNS,
    equal_copies,
    find_copies,
    grouped,
    refuse_copies,
    superfluous,
)
from visionpipe.data.listing import Rejected
from visionpipe.data.measures import read_measured
from visionpipe.data.prepared import (
    PREPARED,
    channel_statistics,
    replacing_folder,
    write_manifest,
    write_measures,
    write_split,
)
from visionpipe.data.sources import SOURCES
from visionpipe.data.splits import check_splits, draw_splits
from visionpipe.data.understood import summary, suspicions
from visionpipe.doctor.checkup import checkup
from visionpipe.errors import DataError
from visionpipe.project.params import Params


def prepare(params: Params) -> None:
    """Reads, decodes, splits and writes the images of `params.prepare`, and prints a summary.

    Only the pixels of a few images are in memory at a time; each image takes some 700 bytes more.

    Raises:
        DataError: no images, a single class, a class without a training image, or an empty split.
    """
    config = params.prepare
    listing = SOURCES[config.source](config)
    if len(listing.classes) < 2:
        classes = f"only the class {listing.classes[0]!r}" if listing.classes else "no class"
        raise DataError(f"{config.path} holds {classes}: expected one folder of images for each class")
    with replacing_folder(PREPARED) as folder:
        spool, measured, thumbnails = (folder / name for name in ("decoded", "measured", "thumbnails"))
        usable, quarantined = decode_into(spool, measured, listing, config, params.threads)
        measures = measure_copies(usable, measured, thumbnails, config)
        usable, rows_of, left_out = decide_on_copies(usable, measures["copies"], config)
        quarantined += left_out
        splits = draw_splits(usable, listing.splits, config, params.seed)
        check_splits(splits, usable, quarantined, listing)
        images = np.memmap(spool, np.uint8, "r", shape=(len(measures["copies"]), *config.size, 3))
        positions = {name: position for position, name in enumerate(listing.classes)}
        for split, chosen in splits.items():
            labels = [positions[usable[row].class_name] for row in chosen]
            rows = [rows_of[row] for row in chosen]
            write_split(folder, split, images, rows, labels, [usable[row].file for row in chosen])
            write_measures(folder, split, measures, rows)
        channel_mean, channel_std = channel_statistics(images, [rows_of[row] for row in splits["train"]])
        for path in (spool, measured, thumbnails):
            path.unlink(missing_ok=True)
        findings, warnings = checkup(folder, list(listing.classes))
        manifest = write_manifest(
            folder,
            size=config.size,
            interpolation=config.interpolation,
            crop_ratio=config.crop_ratio,
            classes=list(listing.classes),
            channel_mean=channel_mean,
            channel_std=channel_std,
            quarantined=[{"path": item.file, "reason": item.reason} for item in quarantined],
            warnings=[*listing.notes, *suspicions(splits, usable, listing.classes), *warnings],
            findings=findings,
        )
    print(summary(manifest))


def measure_copies(
    usable: list[Usable], measured: Path, thumbnails: Path, config: PrepareConfig
) -> dict[str, np.ndarray]:
    """Returns the measures of all images, with `digest`, and with the numbers of their groups of copies in `copies`.

    Where nothing depends on the copies, nearly the same pictures are sought in up to AFFORDABLE images only, and those
    that are cropped or turned in none.
    """
    measures = read_measured(measured, thumbnails)
    digests = np.frombuffer(b"".join(image.digest for image in usable), np.uint8).reshape(-1, 32)
    if config.duplicates is not None:
        copies = find_copies(digests, measures, PLAIN + TURNS, align=True)
    elif len(usable) <= AFFORDABLE:
        copies = find_copies(digests, measures)
    else:
        copies = equal_copies(digests)
    return measures | {"digest": digests, "copies": copies}


def decide_on_copies(
    usable: list[Usable], copies: np.ndarray, config: PrepareConfig
) -> tuple[list[Usable], list[int], list[Rejected]]:
    """Does what `prepare.duplicates` says.

    Returns:
        The images that stay, with the groups that they belong to; their rows among all images; and those left out.
    """
    every = list(range(len(usable)))
    match config.duplicates:
        case "error":
            refuse_copies(usable, copies)
        case "keep":
            return grouped(usable, copies), every, []
        case "drop":
            reasons = superfluous(usable, copies)
            stay = [row for row in every if row not in reasons]
            left_out = [Rejected(usable[row].file, reason) for row, reason in sorted(reasons.items())]
            return [usable[row] for row in stay], stay, left_out
    return usable, every, []
