"""The cheap part of the doctor, which `prepare` runs: copies, quality, and shortcuts of the files alone."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from visionpipe.data.duplicates import copies_between
from visionpipe.data.labels import ABSENT, PRESENT
from visionpipe.data.prepared import SPLITS, Prepared
from visionpipe.doctor.quality import find_quality
from visionpipe.doctor.shortcuts import metadata_shortcuts, named, questions

LEAK_SHARE = 0.01  # of a split; fewer copies are counted in the manifest, and no warning


def checkup(
    folder: Path, classes: list[str], given: frozenset[str] = frozenset()
) -> tuple[dict[str, Any], list[str]]:
    """Looks at the measures of the splits in `folder`.

    Args:
        given: the splits that the source has, which `prepare.duplicates: keep` does not change.

    Returns:
        The findings for the manifest, and warnings.
    """
    data = Prepared(folder, {"classes": classes})
    measures = {split: data.measures(split) or {} for split in SPLITS}
    labels = {split: data.labels(split) for split in SPLITS}
    files = {split: data.files(split) for split in SPLITS}
    warnings = []
    copies = {split: measures[split]["copies"] for split in SPLITS}
    every = np.concatenate(list(copies.values()))
    findings: dict[str, Any] = {
        "copies": {
            "groups": len(np.unique(every[every >= 0])),
            "images": int((every >= 0).sum()),
            "in_several_classes": len(contradicting(copies, labels)),
            "fixed_splits": sorted(given - {"train"}),
            "leaking": {},
        }
    }
    for split in ("validation", "test"):
        earlier = SPLITS[: SPLITS.index(split)]
        leaking = copies_between(copies, split, earlier)
        findings["copies"]["leaking"][split] = int(leaking.sum())
        exact = np.isin(
            keys(measures[split]["digest"]), np.concatenate([keys(measures[s]["digest"]) for s in earlier])
        )
        near = np.flatnonzero(leaking & ~exact)
        if len(near) > LEAK_SHARE * len(leaking):
            first = near[0]
            other, row = next(
                (s, int(rows[0]))
                for s in earlier
                if len(rows := np.flatnonzero(copies[s] == copies[split][first]))
            )
            way = "drop" if given.intersection((split, other)) - {"train"} else "keep"
            warnings.append(
                f"{split} images that are nearly the same as images of {' or '.join(earlier)}: {len(near):,}, such as "
                f"{files[split][first]!r} and {files[other][row]!r}; set prepare.duplicates to {way}, or run "
                "visionpipe doctor to see them"
            )
    joined = {
        name: np.concatenate([measures[split][name] for split in SPLITS])
        for name in measures["train"]
        if name != "thumbnail"
    }
    quality = find_quality(joined)
    findings["quality"] = {kind: len(rows) for kind, rows in quality.items()}
    names = [name for split in SPLITS for name in files[split]]
    rows = quality.get("blank", np.empty(0, int))
    if len(rows) > 1:  # a single one is for the doctor to show
        warnings.append(f"pictures of almost one colour: {len(rows):,}, such as {names[rows[0]]!r}")
    looks = [
        metadata_shortcuts({name: values[rows] for name, values in measures["train"].items()}, answers, names)
        for rows, answers, names in questions(labels["train"], classes)
    ]
    shortcuts = named([shortcut for found, _ in looks for shortcut in found])
    largest = max((score for _, score in looks), default=0.0)
    findings["shortcuts"] = {"largest": largest, "found": [asdict(shortcut) for shortcut in shortcuts]}
    warnings += [
        f"the {found.source} alone recognises the class {found.class_name!r} with an F1 of {found.f1:.2f} (chance "
        f"{found.chance:.2f}): {found.detail}; a model may learn that instead of the picture"
        for found in shortcuts[:3]
    ]
    return findings, warnings


def keys(digests: np.ndarray) -> np.ndarray:
    """Returns uint8 (n, bytes) as values that can be compared, (n,)."""
    return np.ascontiguousarray(digests).view(f"S{digests.shape[1]}").ravel()


def contradicting(copies: dict[str, np.ndarray], labels: dict[str, np.ndarray]) -> np.ndarray:
    """Returns the numbers of the groups of copies whose images have several classes.

    Where images have several labels: of which one image has a label that another one is known not to have.
    """
    groups, classes = (np.concatenate(list(values.values())) for values in (copies, labels))
    if classes.ndim > 1:
        numbers, place = np.unique(groups[groups >= 0], return_inverse=True)
        some = np.zeros((2, len(numbers), classes.shape[1]), bool)
        for which, value in enumerate((PRESENT, ABSENT)):
            np.logical_or.at(some[which], place, classes[groups >= 0] == value)
        return numbers[(some[0] & some[1]).any(axis=1)]
    pairs = np.unique(np.stack([groups, classes], axis=1)[groups >= 0], axis=0)
    numbers, counts = np.unique(pairs[:, 0], return_counts=True)
    return numbers[counts > 1]
