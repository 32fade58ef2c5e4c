"""Names as tables and pages take them: classes and files may be called anything, and nothing runs or breaks by it.

The true names are in the JSON files, and in the tables that are not CSV.
"""

import re
from collections.abc import Iterable

FORMULA = re.compile(
    r"'*[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20]"
)  # the last four are the wide forms of the first
QUOTED = re.compile('[,"\r\n]')
# What may begin or end markup within a line; not the "_" within a word, nor what only marks the line's beginning.
MARKUP = re.compile(r"[\\`*\[\]<>&|~$#@]|:(?=\S)|(?<=www)\.|(?<![^\W_])_|_(?![^\W_])", re.IGNORECASE)


def csv_line(values: Iterable[object]) -> bytes:
    """One line of a CSV file. Text that a spreadsheet would execute has a ' before it, which the spreadsheet hides.

    The standard library's writer leaves a carriage return unquoted where lines end in a line feed alone.
    """
    return (",".join(map(cell, values)) + "\n").encode()


def cell(value: object) -> str:
    if not isinstance(value, str):
        return "" if value is None else str(value)
    text = f"'{value}" if FORMULA.match(value) else value
    return '"' + text.replace('"', '""') + '"' if QUOTED.search(text) else text


def markdown(text: str) -> str:
    """Text as it is, in any place of a Markdown file: references to characters are never markup."""
    return MARKUP.sub(lambda found: f"&#{ord(found[0])};", visible(text))


def script_data(text: str) -> str:
    """Text for the page that `dvc plots show` writes: it lies within a script there, which only "<" can end."""
    return text.replace("<", "\uff1c")


def visible(text: str) -> str:
    """Text in one line: a character that breaks the line, hides or turns the writing is given by its number."""
    return "".join(c if c.isprintable() or c in "\u200c\u200d" else ascii(c)[1:-1] for c in text)
