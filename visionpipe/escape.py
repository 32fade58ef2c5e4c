"""Escapes the names of classes and files for tables and pages, because a name may contain anything.

JSON files, and tables that are not CSV, hold the names unescaped.
"""

import re
from collections.abc import Iterable

# How text starts that a spreadsheet executes. The last four characters are the full-width forms of = + - @.
FORMULA = re.compile(r"'*[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")
QUOTED = re.compile('[,"\r\n]')
# Characters that can start or end Markdown within a line: not "_" inside a word, and not those that matter only at the
# start of a line.
MARKUP = re.compile(r"[\\`*\[\]<>&|~$#@]|:(?=\S)|(?<=www)\.|(?<![^\W_])_|_(?![^\W_])", re.IGNORECASE)


def csv_line(values: Iterable[object]) -> bytes:
    """Formats one line of a CSV file in UTF-8.

    Text that a spreadsheet would execute is prefixed with ', which spreadsheets do not show. The standard library's
    writer is not used, because it leaves a carriage return unquoted if lines end in a line feed.
    """
    return (",".join(map(cell, values)) + "\n").encode()


def cell(value: object) -> str:
    if not isinstance(value, str):
        return "" if value is None else str(value)
    text = f"'{value}" if FORMULA.match(value) else value
    return '"' + text.replace('"', '""') + '"' if QUOTED.search(text) else text


def markdown(text: str) -> str:
    """Escapes text for any place in a Markdown file, with character references, which are never read as markup."""
    return MARKUP.sub(lambda match: f"&#{ord(match[0])};", visible(text))


def script_data(text: str) -> str:
    """Escapes text for a script in the page that `dvc plots show` writes: only "<" can end a script."""
    return text.replace("<", "\uff1c")


def visible(text: str) -> str:
    """Escapes characters that break the line, are invisible or reverse the text, for example as \\n or \\u202e."""
    return "".join(c if c.isprintable() or c in "\u200c\u200d" else ascii(c)[1:-1] for c in text)


def without_password(text: str) -> str:
    """Removes user and password from the addresses in a text."""
    return re.sub(r"://[^/\s]*@", "://", text)
