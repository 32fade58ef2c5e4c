"""What the reference reads from the code: the meaning of each field of a dataclass, its type and its default."""

import dataclasses
import inspect
import itertools
import json
import re
import textwrap
import types
import typing
from collections.abc import Iterable
from typing import Any, Literal

# Docstrings ---------------------------------------------------------------------------------------------------------


def meanings(kind: type) -> dict[str, str]:
    """Returns what the docstrings and comments of a dataclass say about each field, those of its bases included."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if dataclasses.is_dataclass(base):
            found |= described(base.__doc__ or "") | commented(base)
    return found


def described(docstring: str) -> dict[str, str]:
    """Reads `name: text`, in a section `Args:` or `Attributes:` or, with the name in backticks, in running text."""
    text, _, section = inspect.cleandoc(docstring).partition("Args:\n")
    if not section:
        text, _, section = text.partition("Attributes:\n")
    found: dict[str, str] = {}
    running = " ".join(text.split())
    marks = list(re.finditer(r"(?:^|(?<=[.;] ))((?:`\w+`(?:, | and )?)+): ", running))
    for mark, after in itertools.zip_longest(marks, marks[1:]):
        sentence = running[mark.end() : after.start() if after else None].strip()
        found |= dict.fromkeys(re.findall(r"`(\w+)`", mark[1]), capitalised(sentence))
    section = textwrap.dedent(section.split("\n\n")[0])
    for entry in re.split(r"\n(?=\S)", section):
        names, _, meaning = entry.partition(": ")
        sentence = capitalised(" ".join(meaning.split()))
        found |= dict.fromkeys(re.findall(r"\w+", names), sentence)
        # A sentence of an entry may go on to another field: "`accumulate`: steps whose gradients ...".
        head, *rest = re.split(r"(?<=[.;] )(?=`\w+`: )", sentence)
        if rest:
            found |= dict.fromkeys(re.findall(r"\w+", names), capitalised(head.strip()))
            found |= described(" ".join(rest))
    return found


def commented(kind: type) -> dict[str, str]:
    """Reads the comments behind the fields of a class."""
    pattern = r"^    (\w+):.*?#\s+(?!fmt|noqa|type)(.+)$"
    return {
        name: capitalised(text) for name, text in re.findall(pattern, inspect.getsource(kind), re.MULTILINE)
    }


def summary(kind: Any) -> str:
    """Returns the first paragraph of a docstring, without what `described` reads from it."""
    first = " ".join(inspect.cleandoc(kind.__doc__ or "").split("\n\n")[0].split())
    mark = re.search(r"(?:^|(?<=[.;] ))(?:`\w+`(?:, | and )?)+: ", first)
    return first[: mark.start()].strip() if mark else first


def capitalised(text: str) -> str:
    text = text.strip()
    if not re.match(r"`|\w+:/", text):  # neither code nor an address
        text = text[:1].upper() + text[1:]
    return text.rstrip(";") + ("" if text.endswith((".", "?", ";")) or not text else ".")


# Values -------------------------------------------------------------------------------------------------------------


def kind_of(hint: Any) -> str:
    """Returns a type as params.yaml has it."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        (least, most) = arguments[1]
        bounds = f"from {least}" if most == float("inf") else f"{shown(least)} to {shown(most)}"
        return f"{kind_of(arguments[0])}, {bounds}"
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(dict.fromkeys(kind_of(part) for part in arguments))
    if origin is tuple:
        inner = [part for part in arguments if part is not Ellipsis]
        count = "" if Ellipsis in arguments else f"{len(inner)} "
        return f"list of {count}{plural(kind_of(inner[0]))}"
    if origin is dict:
        return f"map from names to {plural(kind_of(arguments[1]))}"
    if dataclasses.is_dataclass(hint):
        return "section"
    names = {
        int: "whole number",
        float: "number",
        str: "text",
        bool: "`true` or `false`",
        type(None): "`null`",
    }
    return names.get(hint, "any value")


def plural(kind: str) -> str:
    plurals = {"whole number": "whole numbers", "number": "numbers", "text": "texts", "section": "sections"}
    return plurals.get(kind, "values" if kind.startswith(("any", "map")) else kind)


def shown(value: Any) -> str:
    if isinstance(value, float) and value == int(value) and abs(value) < 1e9:
        return f"{value:.1f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def default_of(field: "dataclasses.Field[Any]") -> str:
    """Returns the default as params.yaml would have it, or says that there is none."""
    if field.default_factory is not dataclasses.MISSING:
        value: Any = field.default_factory()
    elif field.default is dataclasses.MISSING:
        return "required"
    else:
        value = field.default
    if dataclasses.is_dataclass(value):
        return "see below"
    if isinstance(value, tuple):
        value = [round(number, 4) if isinstance(number, float) else number for number in value]
    return f"`{json.dumps(value)}`" if not isinstance(value, str) else f"`{value}`"


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = list(head)
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


def fields_table(kind: type, only: Iterable[str] | None = None, required: Iterable[str] = ()) -> str:
    """Returns a row for each field of a dataclass.

    Args:
        only: the fields that have a row; None for all.
        required: the fields that have no default in params.yaml, although the dataclass may have one.
    """
    hints, said, required = typing.get_type_hints(kind, include_extras=True), meanings(kind), set(required)
    rows = [
        [
            f"`{f.name}`",
            kind_of(hints[f.name]),
            "required" if f.name in required else default_of(f),
            said.get(f.name, ""),
        ]
        for f in dataclasses.fields(kind)
        if only is None or f.name in only
    ]
    return table(["key", "value", "default", "meaning"], rows)
