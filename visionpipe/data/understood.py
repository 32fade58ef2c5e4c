"""Says what `prepare` understood of the images: counts, what was left out and why, and warnings."""

import itertools
from collections import Counter
from collections.abc import Iterable
from typing import Any

from visionpipe.data.decoding import Usable
from visionpipe.data.deep import counted
from visionpipe.data.prepared import MANIFEST, PREPARED, SPLITS

IMBALANCE = 10
QUARANTINED_SHOWN = 5


def suspicions(splits: dict[str, list[int]], usable: list[Usable], classes: Iterable[str]) -> list[str]:
    """Returns warnings: strong imbalance, classes that are missing from a split, pictures that are in two splits."""
    warnings = []
    (largest, most), *_, (smallest, least) = Counter(
        usable[row].class_name for row in splits["train"]
    ).most_common()
    if most > IMBALANCE * least:
        warnings.append(
            f"strong imbalance: {most:,} training images of {largest!r}, {least:,} of {smallest!r}"
        )
    for split, rows in splits.items():
        absent = sorted(set(classes) - {usable[row].class_name for row in rows})
        if absent:
            warnings.append(f"classes without a {split} image: {len(absent):,}, such as {absent[0]!r}")
    files = {split: {usable[row].digest: usable[row].file for row in rows} for split, rows in splits.items()}
    for one, other in itertools.combinations(SPLITS, 2):
        shared = files[one].keys() & files[other].keys()
        if shared:
            first, second = min((files[one][digest], files[other][digest]) for digest in shared)
            warnings.append(
                f"pictures that are in both {one} and {other}: {len(shared):,}, such as {first!r} and {second!r}"
            )
    return warnings


def summary(manifest: dict[str, Any]) -> str:
    """Describes a prepared data set for people, from its manifest."""
    height, width = manifest["size"]
    channels, depth = manifest["channels"], manifest["depth"]
    form = "" if (channels, depth) == (3, 8) else f", {counted(channels)} of {depth} bits"
    splits = ", ".join(f"{sum(counts.values()):,} {split}" for split, counts in manifest["counts"].items())
    lines = [
        f"prepared {manifest['kept']:,} of {manifest['found']:,} files: {splits} images, "
        f"{len(manifest['classes'])} classes, {height} × {width} pixels{form}"
    ]
    quarantined = manifest["quarantined"]
    if quarantined:
        lines.append(f"{len(quarantined):,} files cannot be used, see {PREPARED / MANIFEST}:")
        lines += [f"  {row['path']!r}: {row['reason']}" for row in quarantined[:QUARANTINED_SHOWN]]
        if len(quarantined) > QUARANTINED_SHOWN:
            lines.append(f"  and {len(quarantined) - QUARANTINED_SHOWN:,} more")
    return "\n".join(lines + [f"WARNING: {warning}" for warning in manifest["warnings"]])
