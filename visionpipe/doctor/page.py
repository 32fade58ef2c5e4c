"""Writes the findings as one HTML page without scripts, which holds its pictures and loads nothing."""

import base64
import hashlib
import html
import io
from pathlib import Path

import numpy as np
from PIL import Image

from visionpipe.doctor.diagnosis import Diagnosis
from visionpipe.doctor.findings import Finding, Images, Item
from visionpipe.escape import visible

MOST_ITEMS = 24  # of a finding on the page; doctor.json has all
MOST_PICTURES = 6  # of an item
LARGEST = 160  # pixels of a side of an embedded picture
LOSSLESS = 64  # pixels up to which pictures are embedded as PNG
Written = dict[tuple[str, str], str]
STYLE = (Path(__file__).parent / "page.css").read_text(encoding="utf-8")


def page(diagnosis: Diagnosis, decisions: Written) -> str:
    """Returns the page.

    `decisions`: the decision of each row of decisions.csv by its file and finding, "" for a row without one.
    """
    digest = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; form-action 'none'"
    )
    images, findings = diagnosis.images, diagnosis.findings
    counts = ", ".join(
        f"{int((images.split == number).sum()):,} {split}" for number, split in enumerate(images.data.splits)
    )
    severe = sum(finding.kind.severe for finding in findings)
    kinds = "1 kind of finding" if len(findings) == 1 else f"{len(findings)} kinds of findings"
    bad = f"{severe} of them {'makes' if severe == 1 else 'make'} numbers false or hide{'s' * (severe == 1)} mistakes"
    verdict = (
        f"{kinds}, {bad if severe else 'none of them makes numbers false'}."
        if findings
        else "Nothing was found."
    )
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light dark">',
            "<title>visionpipe doctor</title>",
            f"<style>{STYLE}</style>",
            "</head>",
            "<body>",
            "<header>",
            "<h1>visionpipe doctor</h1>",
            f"<p>{len(images.labels):,} images ({counts}) in {len(images.data.classes):,} classes. {verdict}</p>",
            "</header>",
            "<main>",
            '<nav aria-label="Findings">',
            *(card(finding) for finding in findings),
            "</nav>",
            *(section(images, finding, decisions, place) for place, finding in enumerate(findings)),
            "</main>",
            "<footer>",
            *(f"<p>{text(note)}</p>" for note in diagnosis.notes),
            "<p>The doctor decides nothing. Write your decisions into the last column of decisions.csv, then run "
            "<code>dvc repro</code>: drop, keep, relabel, relabel CLASS, group or group KEY. "
            "All findings are in doctor.json beside this page.</p>",
            "</footer>",
            "</body>",
            "</html>",
            "",
        ]
    )


def text(value: str) -> str:
    """Escapes text for HTML, and makes characters visible that hide or reverse others."""
    return html.escape(visible(value))


def card(finding: Finding) -> str:
    kind = "severe" if finding.kind.severe else "mild"
    return (
        f'<a class="{kind}" href="#{finding.key}"><strong>{finding.count:,}</strong> '
        f"<span>{text(finding.unit)}</span><em>{text(finding.kind.title)}</em></a>"
    )


def section(images: Images, finding: Finding, decisions: Written, place: int) -> str:
    """Returns the section of a finding. What is decided comes last, so the rest moves up."""
    decided_of = {
        row: decisions[images.files[row], finding.key]
        for item in finding.items
        for row in item.suggestions
        if (images.files[row], finding.key) in decisions
    }
    ordered = sorted(finding.items, key=lambda item: is_decided(item, decided_of))
    shown = ordered[:MOST_ITEMS]
    more = len(ordered) - len(shown)
    kind = finding.kind
    lines = [
        f'<details id="{finding.key}"{" open" if place < 3 else ""}>',
        f"<summary><h2>{text(kind.title)}</h2> <span>{finding.count:,} {text(finding.unit)}</span></summary>",
        f'<p>{text(kind.what)} <span class="sure">How sure: {text(kind.sure)}.</span></p>',
        f'<p class="advice"><strong>What to do:</strong> {text(kind.advice)}</p>',
    ]
    if decided_of:
        rows, undecided = len(decided_of), sum(not decision for decision in decided_of.values())
        rows_are = f"is {rows:,} row" if rows == 1 else f"are {rows:,} rows"
        lines.append(
            f"<p>There {rows_are} in decisions.csv with <code>{finding.key}</code> in the column finding, "
            f"{undecided:,} without a decision.</p>"
        )
    lines += ['<div class="items">', *(article(images, item, decided_of) for item in shown), "</div>"]
    if more:
        lines.append(f'<p class="more">and {more:,} more in doctor.json</p>')
    lines.append("</details>")
    return "\n".join(lines)


def is_decided(item: Item, decisions: dict[int, str]) -> bool:
    """Whether all images that an item asks a decision for have one; `decisions`: row → decision."""
    return bool(item.suggestions) and all(decisions.get(row) for row in item.suggestions)


def article(images: Images, item: Item, decisions: dict[int, str]) -> str:
    suggestions, note = item.suggestions, text(item.note)
    chips = {row: chip(suggestion, decisions.get(row, "")) for row, suggestion in suggestions.items()}
    common = set(suggestions.values())
    if (
        len(suggestions) == len(item.rows) > 1
        and len(common) == 1
        and not any(map(decisions.get, suggestions))
    ):
        chips, note = {}, f"{note} {chip('group ' + common.pop())}"
    pictures = [figure(images, row, chips.get(row, "")) for row in item.rows[:MOST_PICTURES]]
    if item.difference:
        difference = least_difference(*(images.pixels(row) for row in item.rows[:2]))
        pictures.insert(
            2,
            f'<figure class="difference">{picture(difference, "difference")}<figcaption>difference of the two'
            "</figcaption></figure>",
        )
    hidden = len(item.rows) - MOST_PICTURES
    rest = f'<p class="more">and {hidden:,} more</p>' if hidden > 0 else ""
    return f'<article><p>{note}</p><div class="pictures">{"".join(pictures)}{rest}</div></article>'


def least_difference(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Draws where two pictures differ, dark on white: of all ways to mirror and turn the second, the one most like it.

    Args:
        one, other: uint8 (height, width, 3); the result has their shape.
    """
    first = one.astype(np.int16)
    turned = (np.rot90(side, turns) for side in (other, other[:, ::-1]) for turns in range(4))
    differences = [np.abs(first - image) for image in turned if image.shape == one.shape]
    least = min(differences, key=lambda difference: int(difference.sum()))
    return (255 - np.clip(least * 2, 0, 255)).astype(np.uint8)


def figure(images: Images, row: int, row_note: str) -> str:
    name, label, split = images.files[row], images.class_name(row), images.split_name(row)
    return (
        f"<figure>{picture(images.pixels(row), name)}<figcaption><b>{text(label)}</b> <i>{text(split)}</i> "
        f'{row_note}<span class="file">{text(name)}</span></figcaption></figure>'
    )


def chip(suggestion: str, decision: str = "") -> str:
    """Returns the mark of an image with a row in decisions.csv: its decision, or else what it suggests."""
    said = f"decided: {decision}" if decision else f"→ {suggestion}?" if suggestion else "drop?"
    return f'<span class="suggested">{text(said)}</span> '


def picture(pixels: np.ndarray, name: str) -> str:
    """Returns an image element that holds uint8 (height, width, 3)."""
    image, buffer = Image.fromarray(pixels), io.BytesIO()
    image.thumbnail((LARGEST, LARGEST))
    small = max(image.size) <= LOSSLESS
    image.save(buffer, "PNG" if small else "JPEG", **({} if small else {"quality": 82}))
    kind, data = "png" if small else "jpeg", base64.b64encode(buffer.getvalue()).decode()
    pixelated = ' class="pixels"' if small else ""
    return f'<img{pixelated} alt="{text(name)}" loading="lazy" src="data:image/{kind};base64,{data}">'
