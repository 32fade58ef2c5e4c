"""Puts the findings together, in the order of what they cost."""

from collections import Counter, defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from visionpipe.data.duplicates import PLAIN, TURNS, copies_between, find_copies
from visionpipe.data.groups import group_column
from visionpipe.data.measures import ALIGNABLE
from visionpipe.data.prepared import SPLITS, Prepared, counts_of
from visionpipe.doctor.checkup import contradicting
from visionpipe.doctor.drift import find_drift
from visionpipe.doctor.features import features
from visionpipe.doctor.findings import KINDS, Finding, Images, Item, all_images
from visionpipe.doctor.labels import (
    Predictions,
    Probabilities,
    confidently_wrong,
    indistinguishable,
    predict_out_of_fold,
)
from visionpipe.doctor.models import best_model, model_probabilities
from visionpipe.doctor.outliers import far_from_all, find_outliers
from visionpipe.doctor.quality import ADVICE, find_quality
from visionpipe.doctor.several import label_probabilities, several_label_findings
from visionpipe.doctor.shortcuts import (
    Shortcut,
    column_shortcuts,
    metadata_shortcuts,
    name_shortcuts,
    named,
    picture_shortcuts,
    questions,
)
from visionpipe.files import replacing_file, sha256_json
from visionpipe.tasks import TASKS

IMBALANCE = 10
SHOWN_TOGETHER = 4  # images of a group or of a class


@dataclass(frozen=True)
class Diagnosis:
    """The images, what was found, and remarks on how it was looked for."""

    images: Images
    findings: list[Finding]
    notes: list[str]


def diagnose(
    data: Prepared, folder: Path, models: list[str], threads: int | None, group: str | None = None
) -> Diagnosis:
    """Looks at prepared data; keeps what takes long in `folder`, so that an interrupted look continues.

    Args:
        group: `prepare.group`, whose column is no shortcut: a patient has one class by nature.
    """
    folder.mkdir(parents=True, exist_ok=True)
    images = all_images(data)
    copies = all_copies(images, folder)
    described = features(data, folder)
    notes, tables = [], []
    if (name := best_model(models, TASKS[data.task])) is not None:
        table, note = model_probabilities(data, name, folder, threads)
        notes.append(note)
        tables = [table] if len(table) else []
    if "thumbnail" not in images.measures:
        notes.append(
            f"Crops and small rotations are sought from {ALIGNABLE} pixels a side on: these pictures are smaller."
        )
    by_label = several_labels if images.several else single_labels
    findings = [
        *by_label(images, copies, described, tables),
        *shortcut_findings(images, group),
        *quality_findings(images),
        *drift_findings(images),
    ]
    if images.several:
        notes.append("Classes that look alike are not sought, because an image may have several labels.")
    return sorted_diagnosis(images, findings, notes)


def single_labels(
    images: Images, copies: np.ndarray, described: np.ndarray, tables: list[Probabilities]
) -> list[Finding]:
    """Looks at the labels of images that have one each."""
    classes = len(images.data.classes)
    predictions = predict_out_of_fold(described, images.labels, classes, tables)
    return [
        *copy_findings(images, copies, predictions.margin(images.labels)),
        *label_findings(images, predictions),
        *outlier_findings(images, find_outliers(predictions, classes)),
        *class_findings(images, predictions),
    ]


def several_labels(
    images: Images, copies: np.ndarray, described: np.ndarray, tables: list[Probabilities]
) -> list[Finding]:
    """Does what `single_labels` does where an image may have several."""
    table, distances = label_probabilities(described, images.labels, tables)
    return [
        *copy_findings(images, copies, np.zeros(len(images.labels))),
        *several_label_findings(images, table),
        *outlier_findings(images, far_from_all(distances)),
        *rare_findings(images, "rare-labels"),
    ]


def sorted_diagnosis(images: Images, findings: list[Finding], notes: list[str]) -> Diagnosis:
    order = list(KINDS)
    return Diagnosis(images, sorted(findings, key=lambda finding: order.index(finding.key)), notes)


def all_copies(images: Images, folder: Path) -> np.ndarray:
    """Returns the number of each image's group of copies, -1 for an image without one, (n,); kept in `folder`."""
    key = sha256_json(images.data.manifest["sha256"])[:16]
    path = folder / f"copies-{key}.npy"
    if not path.exists():
        for old in folder.glob("copies-*.npy"):
            old.unlink()
        copies = find_copies(images.measures["digest"], images.measures, PLAIN + TURNS, align=True)
        with replacing_file(path) as file:
            np.save(file, copies)
    return np.load(path)


# Copies ----------------------------------------------------------------------------------------------------


def copy_findings(images: Images, copies: np.ndarray, margins: np.ndarray) -> list[Finding]:
    """Describes groups of copies; `margins`, (n,), says how well each image fits its label."""
    by_split = {split: copies[images.split == number] for number, split in enumerate(SPLITS)}
    labels = {split: images.labels[images.split == number] for number, split in enumerate(SPLITS)}
    torn = {int(number) for number in contradicting(by_split, labels)}
    leaking: set[int] = set()
    for split in SPLITS[1:]:
        leaks = copies_between(by_split, split, SPLITS[: SPLITS.index(split)])
        leaking |= set(by_split[split][leaks].tolist())
    groups: dict[int, list[int]] = defaultdict(list)
    for row in np.flatnonzero(copies >= 0).tolist():
        groups[int(copies[row])].append(row)
    two_labels, across, within = [], [], []
    for number, rows in groups.items():
        if number in torn:
            two_labels.append(contradiction(images, rows, margins))
        elif number in leaking:
            first = min(rows, key=lambda row: (-int(images.split[row]), row))
            rest = [row for row in rows if images.split[row] != images.split[first]]
            rest += [row for row in rows if images.split[row] == images.split[first] and row != first]
            across.append(leak_item(images, [first, *rest]))
        else:
            within.append(copy_item(images, rows, dict.fromkeys(rows[1:], "")))
    found = []
    if two_labels:
        found.append(
            Finding(
                "label-conflict",
                sum(len(item.rows) for item in two_labels),
                sorted(two_labels, key=lambda item: item.rows),
            )
        )
    if across:
        found.append(
            Finding(
                "leak", sum(len(item.rows) for item in across), sorted(across, key=lambda item: item.rows)
            )
        )
    if within:
        found.append(
            Finding(
                "copy", sum(len(item.rows) - 1 for item in within), sorted(within, key=lambda item: item.rows)
            )
        )
    return found


def contradiction(images: Images, rows: list[int], margins: np.ndarray) -> Item:
    """Describes copies of several classes; suggests the most frequent one, or that of the image that fits best."""
    counts = Counter(map(images.class_name, rows))
    best = max(rows, key=lambda row: (counts[images.class_name(row)], margins[row], -rows.index(row)))
    right = images.class_name(best)
    wrong = [row for row in rows if images.class_name(row) != right]
    agreeing = [row for row in rows if images.class_name(row) == right]
    return Item(
        [wrong[0], *agreeing, *wrong[1:]],
        f"{how_equal(images, wrong[0], agreeing[0])}, {count_of(len(rows), 'copy', 'copies')} "
        + (f"with {len(counts)} sets of labels" if images.several else f"in {len(counts)} classes"),
        dict.fromkeys(wrong, right),
        difference=True,
    )


def leak_item(images: Images, rows: list[int]) -> Item:
    """Describes copies in several splits; the first image is in the last of these.

    A group, which `prepare` draws into one split, is suggested for all of them. It is impossible where a validation or
    test image is from a split of the source. Then the images in the other splits are best dropped.
    """
    fixed = images.data.manifest["findings"]["copies"].get("fixed_splits", ())
    splits = [images.split_name(row) for row in rows]
    if any(split in fixed for split in splits):
        elsewhere = [row for row, split in zip(rows, splits, strict=True) if split != splits[0]]
        return copy_item(images, rows, dict.fromkeys(elsewhere, ""))
    digest = min(bytes(images.measures["digest"][row]) for row in rows).hex()[:12]
    return copy_item(images, rows, dict.fromkeys(rows, f"copies-{digest}"))


def copy_item(images: Images, rows: list[int], suggestions: dict[int, str]) -> Item:
    note = f"{how_equal(images, rows[0], rows[1])}, {count_of(len(rows), 'image')}"
    return Item(rows, note, suggestions, difference=True)


def how_equal(images: Images, one: int, other: int) -> str:
    digests = images.measures["digest"]
    return "equal pixels" if np.array_equal(digests[one], digests[other]) else "nearly equal"


def count_of(number: int, singular: str, plural: str = "") -> str:
    return f"{number:,} {singular if number == 1 else plural or singular + 's'}"


# Labels and classes ------------------------------------------------------------------------------------------


def label_findings(images: Images, predictions: Predictions) -> list[Finding]:
    labels, classes = images.labels, images.data.classes
    suspects = np.flatnonzero(confidently_wrong(predictions, labels, len(classes)))
    margins = predictions.margin(labels)
    suspects = suspects[margins[suspects] < 0]
    if not len(suspects):
        return []
    others, shares = predictions.other(labels)
    items = [
        Item(
            [row, *examples(images, predictions, int(others[row]), 2)],
            f"labelled {classes[labels[row]]!r} ({predictions.given[row]:.0%}), looks like {classes[others[row]]!r} "
            f"({shares[row]:.0%})",
            {row: classes[others[row]]},
        )
        for row in suspects[np.argsort(margins[suspects], kind="stable")].tolist()
    ]
    return [Finding("label", len(items), items)]


def examples(images: Images, predictions: Predictions, index: int, count: int) -> list[int]:
    """Returns the images of a class that fit it best."""
    rows = np.flatnonzero(images.labels == index)
    order = np.argsort(-np.round(predictions.given[rows], 4), kind="stable")
    return rows[order[:count]].tolist()


def class_findings(images: Images, predictions: Predictions) -> list[Finding]:
    classes = images.data.classes
    found = []
    pairs = indistinguishable(predictions, images.labels, len(classes))
    if pairs:
        items = [
            Item(
                [*examples(images, predictions, one, 2), *examples(images, predictions, other, 2)],
                f"{classes[one]!r} and {classes[other]!r}: {share:.0%} of their images are taken for the other",
            )
            for one, other, share in pairs
        ]
        found.append(Finding("similar-classes", len(pairs), items))
    return found + rare_findings(images, "imbalance")


def rare_findings(images: Images, key: str) -> list[Finding]:
    """Describes the classes that have far fewer training images than the largest one."""
    classes = images.data.classes
    train = images.split == 0
    counts = np.array(counts_of(images.labels[train], len(classes)))
    if counts.max() <= IMBALANCE * max(counts.min(), 1):
        return []
    rare = np.flatnonzero(counts * IMBALANCE < counts.max())
    items = [
        Item(
            np.flatnonzero(images.having(index) & train)[:SHOWN_TOGETHER].tolist(),
            f"{classes[index]!r} has {count_of(int(counts[index]), 'training image')}, the largest class "
            f"{counts.max():,}",
        )
        for index in rare[np.argsort(counts[rare], kind="stable")].tolist()
    ]
    return [Finding(key, len(items), items)]


# Shortcuts, pictures, splits ------------------------------------------------------------------------------


def shortcut_findings(images: Images, group: str | None) -> list[Finding]:
    """Describes what recognises a class; the column of `group` is no shortcut."""
    train = np.flatnonzero(images.split == 0)
    metadata = images.data.metadata("train")
    metadata.pop(group_column(list(metadata), group) or "", None)
    found: dict[str, list[Shortcut]] = {"shortcut": [], "metadata": [], "file-names": []}
    for some, labels, classes in questions(images.labels[train], images.data.classes):
        rows = train[some]
        measures = {name: values[rows] for name, values in images.measures.items() if name != "thumbnail"}
        seen = {shortcut.class_name: shortcut for shortcut in picture_shortcuts(measures, labels, classes)}
        files = {
            shortcut.class_name: shortcut for shortcut in metadata_shortcuts(measures, labels, classes)[0]
        }
        found["shortcut"] += [*seen.values(), *files.values()]
        columns = {name: np.array(values, object)[some].tolist() for name, values in metadata.items()}
        found["metadata"] += column_shortcuts(columns, labels, classes)
        found["file-names"] += name_shortcuts([images.files[row] for row in rows.tolist()], labels, classes)
    return [
        Finding(key, len(shortcuts), [shortcut_item(images, train, shortcut) for shortcut in shortcuts])
        for key, of_key in found.items()
        if (shortcuts := named(of_key))
    ]


def shortcut_item(images: Images, train: np.ndarray, shortcut: Shortcut) -> Item:
    index = images.data.classes.index(shortcut.class_name)
    rows, others = train[images.having(index)[train]], train[images.lacking(index)[train]]
    detail = f"; {shortcut.detail}" if shortcut.detail else ""
    return Item(
        spread(rows, SHOWN_TOGETHER) + spread(others, 2),
        f"the {shortcut.source} recognises {shortcut.class_name!r} with an F1 of {shortcut.f1:.2f}, chance "
        f"{shortcut.chance:.2f}{detail}",
    )


def spread(rows: np.ndarray, count: int) -> list[int]:
    """Returns `count` rows at equal distances, or all if there are fewer."""
    return rows[np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(int)].tolist()


def outlier_findings(images: Images, rows: np.ndarray) -> list[Finding]:
    if not len(rows):
        return []
    items = [
        Item([row], f"labelled {images.class_name(row)!r}, unlike all others", {row: ""})
        for row in rows.tolist()
    ]
    return [Finding("outlier", len(items), items)]


def quality_findings(images: Images) -> list[Finding]:
    measures = images.measures
    items = []
    for kind, rows in find_quality(measures).items():
        for row in rows.tolist():
            shape = f"{measures['height'][row]} × {measures['width'][row]} pixels"
            items.append(Item([row], f"{kind}: {ADVICE[kind]} ({shape})", {row: ""}))
    if not items:
        return []
    return [Finding("quality", len(items), items)]


def drift_findings(images: Images) -> list[Finding]:
    drifts = find_drift(images)
    if not drifts:
        return []
    items = []
    for split, sentence, size in drifts:
        number = images.data.splits.index(split)
        rows = [row for other in (0, number) for row in spread(np.flatnonzero(images.split == other), 3)]
        items.append(Item(rows, f"{sentence} (distance {size:.2f} of 1)"))
    return [Finding("drift", len(items), items)]


def as_json(diagnosis: Diagnosis) -> dict[str, Any]:
    """Returns all findings as JSON values."""
    images = diagnosis.images
    result = []
    for finding in diagnosis.findings:
        content = {"key": finding.key, "count": finding.count} | asdict(finding.kind) | {"unit": finding.unit}
        content["items"] = [
            {
                "note": item.note,
                "images": [
                    {
                        "file": images.files[row],
                        "split": images.split_name(row),
                        "label": images.class_name(row),
                        **({"suggestion": item.suggestions[row]} if row in item.suggestions else {}),
                    }
                    for row in item.rows
                ],
            }
            for item in finding.items
        ]
        result.append(content)
    return {
        "content_sha256": images.data.manifest["content_sha256"],
        "images": len(images.labels),
        "classes": len(images.data.classes),
        "notes": diagnosis.notes,
        "findings": result,
    }
