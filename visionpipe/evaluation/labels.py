"""Makes texts of class names that can be drawn and told apart, whatever characters the names have."""

import functools
import unicodedata
from collections import Counter
from collections.abc import Iterator

from matplotlib import font_manager
from matplotlib.ft2font import FT2Font

from visionpipe.escape import visible

FONT = "DejaVu Sans"  # which matplotlib ships, so that it is the same on every machine
# Parts of the names of fonts whose characters are boxes, empty, coloured bitmaps, not those of Unicode or not regular.
UNFIT_FONTS = (
    "last resort",
    "lastresort",
    "blank",
    "emoji",
    "color",
    "nonunicode",
    "symbol",
    "cm",
    "dingbat",
    "condensed",
    "narrow",
)
LEFT_TO_RIGHT = "\u200e"
MOST_LETTERS = 22  # of a name; the rest is cut off


def drawable(names: list[str]) -> tuple[list[str], list[str]]:
    """Returns a short text for each name, no two of which look alike, and the fonts to draw them in.

    Characters that FONT lacks are drawn in other fonts of this machine. Those that no font has are escaped. Of names
    that look alike, those after the first end in their position among the names.
    """
    printed = [visible(unicodedata.normalize("NFC", name)) for name in names]
    missing = frozenset(char for text in printed for char in text if ord(char) not in glyphs(FONT))
    fonts, drawn = fallback_fonts(missing)
    escaped = missing - drawn
    texts = ["".join(ascii(c)[1:-1] if c in escaped else c for c in text) for text in printed]
    counts = Counter(look(cut_end(text)) for text in texts)
    texts = [cut_end(text) if counts[look(cut_end(text))] == 1 else cut_middle(text) for text in texts]
    return [marked(text) for text in unlike(texts)], [FONT, *fonts]


def marked(text: str) -> str:
    """Ends a text of right-to-left letters with an invisible mark, so that a number behind it stays behind it."""
    return text + LEFT_TO_RIGHT * any(unicodedata.bidirectional(char) in ("R", "AL") for char in text)


def cut_end(text: str) -> str:
    return text if len(text) <= MOST_LETTERS else text[: MOST_LETTERS - 1] + "…"


def cut_middle(text: str) -> str:
    """Cuts a text that is too long in its middle, because its beginning is that of another."""
    half = MOST_LETTERS // 2
    return text if len(text) <= MOST_LETTERS else f"{text[: half - 1]}…{text[-half:]}"


def unlike(texts: list[str]) -> Iterator[str]:
    """Yields the texts; one that looks like an earlier one gets its position."""
    seen = set()
    for position, text in enumerate(texts):
        candidate = text
        while look(candidate) in seen:
            candidate = f"{candidate} ({position})"
        seen.add(look(candidate))
        yield candidate


def look(text: str) -> tuple[bytes | str, ...]:
    """Returns what a text looks like: the outlines of its characters, without spaces."""
    return tuple(shape for shape in map(outline, text) if shape)


@functools.cache
def outline(char: str) -> bytes | str:
    """Returns the outline of a character: Latin and Cyrillic letters may have the same."""
    if ord(char) not in glyphs(FONT):
        return char
    font = opened(FONT)
    font.load_char(ord(char))
    return font.get_path()[0].tobytes()


@functools.cache
def fallback_fonts(missing: frozenset[str]) -> tuple[list[str], frozenset[str]]:
    """Returns fonts of this machine that have some of the characters, and the characters that they have."""
    fonts, drawn = [], set[str]()
    families = {
        font.name
        for font in font_manager.fontManager.ttflist
        if font.weight in (400, "normal", "regular", "book")
        and not any(part in font.name.lower() for part in UNFIT_FONTS)
    }
    for family in sorted(families, key=lambda name: ("Sans" not in name, name)) if missing else ():
        new = {char for char in missing - drawn if ord(char) in glyphs(family)}
        if new:
            fonts.append(family)
            drawn |= new
        if drawn == missing:
            break
    return fonts, frozenset(drawn)


@functools.cache
def glyphs(family: str) -> frozenset[int]:
    """Returns the code points of a font; none if it cannot be scaled."""
    font = opened(family)
    return frozenset(font.get_charmap()) if font.num_faces and font.scalable else frozenset()


@functools.cache
def opened(family: str) -> FT2Font:
    """Opens a font, apart from matplotlib's own object, whose outlines change with the size of what was drawn last."""
    return FT2Font(font_manager.findfont(family))
