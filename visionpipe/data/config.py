"""The section `prepare:` of params.yaml."""

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from visionpipe.data.headers import PADDING

OVERSAMPLING = 2  # pixels of a reduced JPEG for each of the result; resizing averages them
DECISIONS = Path("decisions.csv")  # what the user has decided about single images; decisions.py reads it
DECISIONS_HEADER = b"file,finding,suggestion,decision\n"


@dataclass(frozen=True, kw_only=True)
class TableConfig:
    """Which columns of a table say what about each image. All other columns are metadata.

    Args:
        path: The table, relative to `prepare.path`; null takes the only CSV, TSV or Parquet file at its top.
        file: The column with the files of the images.
        label: The column with the classes, as text or as numbers.
        labels: With `task: multi`, the columns of which each says whether an image has one label: 0 or 1, false or
            true, no or yes; empty or -1 is unknown. null takes all such columns.
        separator: With `task: multi`, what stands between the labels in the column `label`, such as "|"; an empty cell
            is an image without a label.
        split: The column that names the split; null draws the splits.
        group: The column that names the group; images of one group are never in two splits.
        weight: The column with the factor of an image's training loss, at least 0. Metrics are never weighted.
        root: The folder that the files are relative to, relative to `prepare.path`; null takes that of the table.
        classes: The file that names the classes by number, counted from 0, relative to `prepare.path`: a line, or an
            entry of a JSON or YAML list, for each.
        metadata: The further columns that go to reports and predictions; null takes all.
    """

    path: str | None = None
    file: str = "file"
    label: str = "label"
    labels: tuple[str, ...] | None = None
    separator: str | None = None
    split: str | None = None
    group: str | None = None
    weight: str | None = None
    root: str | None = None
    classes: str | None = None
    metadata: tuple[str, ...] | None = None


@dataclass(frozen=True)
class PrepareConfig:
    """Where the images come from, and how they are resized and split.

    Args:
        source: The kind of the source.
        path: The folder or file with the images; for `table` the folder or zip archive that holds the table and the
            images, for `huggingface` a folder of `save_to_disk`, for `tfds` the data folder of TensorFlow Datasets.
        name: The data set of TensorFlow Datasets; for other sources null.
        size: Height and width of the prepared images in pixels.
        interpolation: How images are resized; the artifact uses it too.
        crop_ratio: The side of the central crop, relative to the short side of the resized image; the artifact uses it
            too.
        follow_links: Whether links in a folder are followed to files and folders outside of it, for `folder` only.
        table: With `source: table` and `huggingface`, which columns say what.
        group: What images that belong together have in common, such as a patient, so that they are never in two splits:
            a column of a table, or a regular expression with one group in parentheses, which is searched in the path of
            each image. The fractions are then approximate.
        folds: Divides training and validation images into this many parts, for cross-validation; null: into none.
        framing: How an image of another shape fits: `crop` cuts off what stands over, `pad` adds margins, `stretch`
            changes its shape; the artifact uses it too.
        pad_color: Red, green and blue of the margins, in [0, 255]; the artifact uses it too.
        levels: The levels that become black and white in images of more than 8 bits, such as [0, 4095]; `file` takes
            the least and the largest of each image; null takes those that the file states, else all of 16 bits. The
            artifact uses it too.
        channels: The channels of the prepared images: 1 for grey, 3 for RGB, or as many as the files have; the artifact
            uses it too.
        depth: The bits of a prepared pixel's value, 8 or 16; the artifact uses it too.
        reduced_decode: Whether JPEG files are decoded at a half, a quarter or an eighth of their sides where these then
            still have twice as many pixels as `size`, which is faster; the artifact does the same.
        test_fraction: The share of all images that becomes the test split, if the source has none. It is drawn first.
        validation_fraction: The share of the remaining training images that becomes the validation split, if the
            source has none.
        duplicates: What becomes of copies, the same and nearly the same pictures: `keep` draws them into one split,
            `drop` leaves out all but one, `error` stops; null only warns. Splits of the source stay as they are.
    """

    source: Literal["zip", "folder", "table", "huggingface", "tfds", "idx"]
    path: str
    name: str | None = None
    size: tuple[int, int] = (64, 64)
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] = field(
        default="bicubic", kw_only=True
    )
    crop_ratio: float = field(default=1.0, kw_only=True)
    follow_links: bool = field(default=False, kw_only=True)
    table: TableConfig | None = field(default=None, kw_only=True)
    group: str | None = field(default=None, kw_only=True)
    folds: int | None = field(default=None, kw_only=True)
    framing: Literal["crop", "pad", "stretch"] = field(default="crop", kw_only=True)
    pad_color: tuple[int, int, int] = field(default=PADDING, kw_only=True)
    levels: Literal["file"] | tuple[float, float] | None = field(default=None, kw_only=True)
    channels: int = field(default=3, kw_only=True)
    depth: Literal[8, 16] = field(default=8, kw_only=True)
    reduced_decode: bool = field(default=False, kw_only=True)
    validation_fraction: float = 0.2
    test_fraction: float = 0.2
    duplicates: Literal["keep", "drop", "error"] | None = field(default=None, kw_only=True)

    @property
    def has_groups(self) -> bool:
        """Whether a column or a pattern says which images belong together."""
        return self.group is not None or (self.table is not None and self.table.group is not None)

    @property
    def decode_options(self) -> dict[str, Any]:
        """The arguments of PixelFormat, which the artifact shares."""
        reduced_to = (
            math.ceil(OVERSAMPLING * max(self.size) / self.crop_ratio) if self.reduced_decode else None
        )
        return {
            "levels": self.levels,
            "channels": self.channels,
            "depth": self.depth,
            "reduced_to": reduced_to,
        }

    @property
    def frame_options(self) -> dict[str, Any]:
        """The keyword arguments of `frame`."""
        names = ("size", "interpolation", "crop_ratio", "framing", "pad_color")
        return {name: getattr(self, name) for name in names}


def group_pattern(group: str | None) -> re.Pattern[str] | None:
    """Returns `prepare.group` as a pattern with one group in parentheses; None where it is no such pattern."""
    try:
        pattern = re.compile(group) if group is not None else None
    except re.error:
        return None
    return pattern if pattern and pattern.groups == 1 else None
