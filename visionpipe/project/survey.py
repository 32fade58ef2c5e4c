"""A fast look at labelled images before anything is prepared: how many, of what size, format and class.

Only the beginning of each file is read, and no pixel is decoded. Files are listed by the rules of the stage
`prepare`, so that both agree on what is an image of which class. Only `prepare` notices damaged pixels and pictures
that lie in two splits.
"""

import itertools
import struct
import warnings
import zipfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from tqdm import tqdm

from visionpipe.data.config import PrepareConfig
from visionpipe.data.deep import ARRAY, DICOM, kind_of, stored_form
from visionpipe.data.form import PixelFormat
from visionpipe.data.formats import format_of, open_image
from visionpipe.data.headers import MAX_PIXELS, check_size, check_tiff
from visionpipe.data.huggingface import MARKS, several_reason
from visionpipe.data.levels import has_two_bytes
from visionpipe.data.listing import NOT_IN_A_CLASS, Listing, Record, Rejected
from visionpipe.data.sources import list_source
from visionpipe.data.splits import LOST_SHOWN, first_reason
from visionpipe.data.spreadsheet import ENDINGS
from visionpipe.data.wording import counted, quoted
from visionpipe.errors import DataError, ImageError
from visionpipe.escape import visible
from visionpipe.project.table_survey import Guess
from visionpipe.tasks import TASKS, task_for

BEGINNING = 64 * 2**10  # bytes: the size of a JPEG stands behind its thumbnail and its colour profile
TOGETHER = 64  # files that a thread looks at in one go
PERCENTILES = (0, 5, 50, 95, 100)
IMBALANCE = 10  # times as many images of the largest class as of the smallest
ELONGATED = 1.6  # times as long as wide; a square in the middle is less than two thirds of such an image
MANY = 0.2  # of the images
SHOWN = 8  # classes or files that are named

Source = Literal["zip", "folder", "table", "huggingface", "idx"]


@dataclass(frozen=True)
class Header:
    """What a file says about its picture. `grey` and `transparent` are as stored, whatever the pixels hold.

    `form`: the format of the values, where it is not that of a picture of 8 bits.
    """

    width: int
    height: int
    format: str
    grey: bool
    transparent: bool
    form: PixelFormat | None = None


@dataclass(frozen=True)
class Survey:
    """What a source holds.

    `classes`: class → images of all splits; `splits`: split → images, empty where the source has no folders for
    splits; `short_sides`, `long_sides`: percentile → pixels; `elongated`: share of the images of which a side is more
    than ELONGATED times the other;
    `one_size`: (height, width) where all images have the same, else None; `pixels`: of all images together;
    `form`: the keys of `prepare` for arrays, DICOM files and TIFFs of many channels, else empty; `odd`: sentences about
    what may be a mistake; `guess`: what the columns of a table say; `task_reason`: why the task is not single;
    `count`: of the images, where they may have several labels, so that `classes` counts some more than once.
    """

    source: Source
    path: str
    classes: dict[str, int]
    splits: dict[str, int]
    short_sides: dict[int, int]
    long_sides: dict[int, int]
    elongated: float
    one_size: tuple[int, int] | None
    pixels: int
    formats: dict[str, int]
    grey: int
    transparent: int
    odd: tuple[str, ...] = ()
    form: dict[str, Any] = field(default_factory=dict)
    guess: Guess | None = None
    task: str = "single"
    task_reason: str = ""
    count: int | None = None

    @property
    def images(self) -> int:
        return sum(self.classes.values()) if self.count is None else self.count

    @property
    def lacks(self) -> str:
        """What could have named the splits."""
        return "table" if self.guess else "folders"

    @property
    def blind(self) -> float:
        """The score of a model that sees nothing."""
        return TASKS[self.task].blind_share(list(self.classes.values()), self.images)

    def lines(self) -> Iterator[str]:
        """Describes the images for people."""
        yield f"{self.images:,} images in {len(self.classes)} classes: {visible(self.path)}"
        ranked = sorted(self.classes.items(), key=lambda item: -item[1])
        named = [f"{visible(name)} {count:,}" for name, count in ranked]
        if len(named) > SHOWN:
            named[SHOWN - 3 : -2] = [f"… {len(named) - SHOWN + 1} more …"]
        yield f"  classes   {', '.join(named)}"
        if self.one_size:
            yield f"  sizes     all {self.one_size[1]} × {self.one_size[0]} pixels"
        else:
            short = self.short_sides
            yield (
                f"  sizes     median short side {short[50]:,} pixels, nine of ten {short[5]:,} to {short[95]:,}; "
                f"all sides {self.short_sides[0]:,} to {self.long_sides[100]:,}"
            )
        yield f"  formats   {', '.join(f'{name} {count:,}' for name, count in self.formats.items())}"
        kinds = {"colour": self.images - self.grey, "grey": self.grey}
        stored = ", ".join(f"{name} {count:,}" for name, count in kinds.items() if count)
        on_white = f"; {self.transparent:,} with transparency, shown on white" if self.transparent else ""
        yield f"  channels  {stored}{on_white}"
        given = ", ".join(f"{name} {count:,}" for name, count in self.splits.items())
        yield f"  splits    {given or f'none in the {self.lacks}: prepare draws them'}"
        yield from (f"  note      {sentence}" for sentence in self.odd)


def survey(
    path: Path, shown_path: str | None = None, guess: Guess | None = None, follow_links: bool = False
) -> Survey:
    """Looks at the beginning of every file below `path`: a zip archive, a folder, or a folder of IDX files.

    With a `guess` it looks at the files that its table names. With `follow_links` links in a folder are followed to
    files and folders outside of it.

    Raises DataError where no training can follow.
    """
    name = visible(shown_path or str(path))
    source: Source = "table" if guess else source_of(path, name)
    reason = why_several(source, path, guess)
    listing = listing_of(source, path, guess, follow_links)
    seen: list[tuple[Record, Header]] = []
    unusable: list[Rejected] = []
    for entry, header in look_at_all(listing):
        if isinstance(header, Rejected):
            unusable.append(header)
        else:
            seen.append((cast(Record, entry), header))
    check(name, listing, seen, unusable)
    sides = np.array([(header.height, header.width) for _, header in seen])
    classes = Counter(dict.fromkeys(listing.classes, 0))
    classes.update(class_name for record, _ in seen for class_name in record.names)
    splits = Counter(record.split or "train" for record, _ in seen) if listing.splits else {}
    short, long = sides.min(axis=1), sides.max(axis=1)
    elongated = float((long > ELONGATED * short).mean())
    return Survey(
        source=source,
        path=shown_path or str(path),
        classes=dict(classes),
        splits=dict(splits),
        short_sides=percentiles(short),
        long_sides=percentiles(long),
        elongated=elongated,
        one_size=(int(sides[0, 0]), int(sides[0, 1])) if (sides == sides[0]).all() else None,
        pixels=int(sides.prod(axis=1, dtype=np.int64).sum()),
        formats=dict(Counter(header.format for _, header in seen).most_common()),
        grey=sum(header.grey for _, header in seen),
        transparent=sum(header.transparent for _, header in seen),
        form=form_of([header for _, header in seen]),
        odd=(
            *listing.notes,
            *(guess.odd if guess else ()),
            *deep_pictures([header for _, header in seen]),
            *oddities(classes, elongated, short, unusable),
        ),
        guess=guess,
        task=task_for(several=bool(reason)).name,
        task_reason=reason,
        count=len(seen),
    )


def why_several(source: Source, path: Path, guess: Guess | None) -> str:
    """Says why an image may have several labels; "" where each has one."""
    if guess:
        return guess.task_reason
    return several_reason(path) if source == "huggingface" else ""


def listing_of(source: Source, path: Path, guess: Guess | None = None, follow_links: bool = False) -> Listing:
    """Lists the images as `prepare` will."""
    columns = guess.columns if guess else None
    config = PrepareConfig(
        source,
        str(path),
        table=columns,
        group=guess.group if guess else None,
        follow_links=follow_links,
    )
    return list_source(config, bool(why_several(source, path, guess)))


def source_of(path: Path, name: str) -> Source:
    """Returns the value of `prepare.source` for these images; raises DataError where there is none."""
    if not path.exists():
        raise DataError(f"{name}: there is no such file or folder")
    if path.is_file():
        if not zipfile.is_zipfile(path):
            raise DataError(f"{name} is neither a folder nor a zip archive")
        return "zip"
    if any((path / mark).is_file() for mark in MARKS):
        return "huggingface"
    first = "train-images-idx3-ubyte"
    return "idx" if any((path / file).is_file() for file in (first, f"{first}.gz")) else "folder"


def look_at_all(listing: Listing) -> Iterator[tuple[Record | Rejected, Header | Rejected]]:
    """Reads the headers in threads, which hide the delays of slow disks."""
    with (
        warnings.catch_warnings(),  # Pillow remarks on odd metadata and on huge images
        ThreadPoolExecutor() as pool,
        tqdm(desc="looking at", total=listing.total, unit=" images", disable=None, leave=False) as bar,
    ):
        warnings.simplefilter("ignore")
        entries = iter(listing.entries)
        batches = iter(lambda: list(itertools.islice(entries, TOGETHER)), [])
        while ahead := list(itertools.islice(batches, 64)):
            for batch, headers in zip(ahead, pool.map(look_at, ahead), strict=True):
                yield from zip(batch, headers, strict=True)
                bar.update(len(batch))


def look_at(entries: list[Record | Rejected]) -> list[Header | Rejected]:
    return [entry if isinstance(entry, Rejected) else header_of(entry) for entry in entries]


def header_of(record: Record) -> Header | Rejected:
    """Reads a file's header; returns why not where the file is no image that `prepare` takes."""
    try:
        begins = record.read(BEGINNING)
        kind = kind_of(begins) or format_of(begins)
        try:
            header = read_header(begins, kind)
        except ImageError:
            raise
        except Exception:  # the parsers fail in many ways, also where the header goes on behind the beginning
            if len(begins) < BEGINNING:
                raise
            header = read_header(record.read(), kind)  # a TIFF file may have its directory at its end
        check_size(header.width, header.height, MAX_PIXELS, MAX_PIXELS)  # the size of the file is not known
    except ImageError as error:
        return Rejected(record.file, error.reason, record.class_name)
    except Exception:
        return Rejected(record.file, "damaged header", record.class_name)
    return header


def read_header(begins: bytes, kind: str) -> Header:
    """Reads the header of a file of the format `kind`, as Pillow calls it. Raises any error of a parser."""
    if kind == "WEBP":  # Pillow would need the whole file
        return webp_header(begins)
    if kind in (ARRAY, DICOM):
        height, width, form = stored_form(begins, kind)
        return Header(width, height, kind, form.channels == 1, False, form)
    if kind == "TIFF":
        check_tiff(begins)
    try:
        image = open_image(begins, kind)
    except Exception:  # Pillow reads no TIFF of many channels
        if kind != "TIFF":
            raise
        height, width, form = stored_form(begins, kind)
        return Header(width, height, kind, form.channels == 1, False, form)
    grey = image.mode in ("1", "L", "LA", "F") or image.mode.startswith("I")
    deep = image.mode.startswith("I") or has_two_bytes(image, begins)
    form = PixelFormat(None, 1 if grey else 3, 16)
    return Header(image.width, image.height, kind, grey, image.has_transparency_data, form if deep else None)


def webp_header(begins: bytes) -> Header:
    """Reads the first chunk of a WebP file: lossy, lossless or extended (RFC 9649, sections 2.5 to 2.7)."""
    kind = begins[12:16]
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", begins, 26)
        return Header(width & 0x3FFF, height & 0x3FFF, "WEBP", False, False)
    if kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", begins, 21)
        return Header((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1, "WEBP", False, bool(bits >> 28 & 1))
    if kind == b"VP8X":
        width, height = (int.from_bytes(begins[place : place + 3], "little") + 1 for place in (24, 27))
        return Header(width, height, "WEBP", False, bool(begins[20] & 0x10))
    raise ImageError("broken", "an unknown kind of WebP")


def check(name: str, listing: Listing, seen: list[tuple[Record, Header]], unusable: list[Rejected]) -> None:
    """Raises DataError where `prepare` would: no images, one class, a class without images, too few to split."""
    loose = sum(item.reason == NOT_IN_A_CLASS for item in unusable)
    lost = "".join(f"; {sentence}" for sentence in listing.lost[:LOST_SHOWN])
    table = next((item.file for item in unusable if item.file.casefold().endswith(ENDINGS)), None)
    hint = f"; if {visible(table)} names the classes of the images, give --images that table" if table else ""
    if not listing.classes:
        if loose and not lost:
            raise DataError(
                f"{name} holds {counted(loose, 'file that lies', 'files that lie')} in no folder of a class: make a "
                f"folder for each class, named like it, and move {'it' if loose == 1 else 'them'} there{hint}"
            )
        raise DataError(f"{name} holds no images: expected a folder of images for each class{lost}{hint}")
    if not seen:
        raise DataError(f"{name} holds no usable image in its folders{first_reason(unusable)}")
    if len(listing.classes) < 2:
        raise DataError(
            f"{name} holds only the class {listing.classes[0]!r}: a classifier needs a folder of images for each of "
            f"at least two classes{lost}{hint}"
        )
    trained = [record for record, _ in seen if record.split in (None, "train")]
    counts = Counter(class_name for record in trained for class_name in record.names)
    for class_name in listing.classes:
        if not counts[class_name]:
            refused = [item for item in unusable if item.class_name == class_name]
            raise DataError(
                f"{name}: the class {class_name!r} has no usable image to train on: put some into its folder, or "
                f"remove it{first_reason(refused)}"
            )
    drawn = sum(split not in listing.splits for split in ("validation", "test"))
    if max(counts.values()) < 1 + drawn:
        raise DataError(f"{name} has too few images to draw splits from: no class has {1 + drawn}")


def form_of(headers: list[Header]) -> dict[str, Any]:
    """Returns the keys of `prepare` that keep the values of most files, if these are no pictures; else nothing."""
    forms = Counter(header.form for header in headers if is_beyond(header))
    if sum(forms.values()) < len(headers) / 2:
        return {}
    ((form, _),) = forms.most_common(1)
    assert form is not None
    keys = {"levels": form.levels, "channels": form.channels, "depth": form.depth}
    return {key: value for key, value in keys.items() if value != getattr(PixelFormat(), key)}


def is_beyond(header: Header) -> bool:
    """Whether a file is an array or a DICOM file, or has a number of channels that no picture has."""
    return header.form is not None and (header.format in (ARRAY, DICOM) or header.form.channels not in (1, 3))


def deep_pictures(headers: list[Header]) -> Iterator[str]:
    """Says how many pictures have 16 bits, and the key that keeps them."""
    deep = [header for header in headers if header.form and not is_beyond(header)]
    if deep:
        grey = ", and prepare.channels: 1 one channel" if all(header.grey for header in headers) else ""
        yield (
            f"{len(deep):,} image{'s' if len(deep) > 1 else ''} of 16 bits become 8: prepare.depth: 16 keeps all{grey}"
        )


def oddities(
    classes: Counter[str], elongated: float, short: np.ndarray, unusable: list[Rejected]
) -> Iterator[str]:
    """Says what may be a mistake, and what to do about it."""
    (largest, most), *_, (smallest, least) = classes.most_common()
    if most > IMBALANCE * least:
        yield (
            f"uneven classes: {most:,} images of {visible(largest)}, {least:,} of {visible(smallest)}; where the rare "
            "ones matter as much, write sampler: sqrt and logit_adjustment: 1.0 into the section train"
        )
    few = [name for name, count in classes.items() if count < 10]
    if few:
        others = " and others" if len(few) > SHOWN else ""
        yield f"fewer than 10 images of {', '.join(map(visible, few[:SHOWN]))}{others}: too few to learn from"
    if elongated > MANY:
        yield (
            f"{elongated:.0%} of the images are more than {ELONGATED} times as long as wide: prepare.framing says how "
            "they fit, and prepare.size can be another rectangle"
        )
    if short.min() < 8:
        tiny = int((short < 8).sum())
        yield f"{counted(tiny, 'image')} {'has' if tiny == 1 else 'have'} a side of fewer than 8 pixels"
    reasons = Counter(item.reason for item in unusable)
    for reason, count in reasons.most_common():
        example = quoted(next(item.file for item in unusable if item.reason == reason))
        yield f"{counted(count, 'file')} left out, {'such as ' if count > 1 else ''}{example}: {reason}"


def percentiles(values: np.ndarray) -> dict[int, int]:
    return {share: round(float(np.percentile(values, share))) for share in PERCENTILES}
