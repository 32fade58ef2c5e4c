"""Parses the numbers of a large tensor in JSON in pieces.

No other thread can run while JSON is parsed. So the list of numbers is cut out of the request, and parsed a few
thousand numbers at a time.
"""

import math
import secrets
from typing import Any

import numpy as np
import orjson

from visionpipe.serving.bodies import find, invalid, outside_strings
from visionpipe.serving.settings import NUMBERS_STEP, QUICK_BODY, SEARCH_STEP

CUT = secrets.token_hex(16)  # replaces the list that was cut out; random, so that no client can send it
FLAT = bytes.maketrans(b"[]", b"  ")
DIGITS = bytes(set(range(256)) - set(b"[],"))  # all bytes but brackets and commas
NUMERIC = b"0123456789+-.eE \t\r\n[],"  # the bytes of lists of numbers
OTHERS = {'"': "a string", "t": "true", "f": "false", "n": "null", "{": "an object"}  # by their first byte


def cut_numbers(body: bytes, strings: int) -> tuple[bytes, bytes]:
    """Replaces the longest list without strings by CUT, if the JSON is large; returns the JSON and the list.

    Returns an empty list if nothing was replaced. Raises Refusal if a large JSON has more than `strings` strings.
    """
    if len(body) <= QUICK_BODY:
        return body, b""
    start, stop = max(outside_strings(body, strings), key=lambda span: span[1] - span[0])
    brace = find(body, b"}", start)  # after the list, unless a string comes first
    stop = brace if start <= brace < stop else stop
    first, last = body.find(b"[", start, start + NUMBERS_STEP), body.rfind(b"]", start, stop)
    if body[start:first].strip() != b":" or last < first:
        return body, b""
    brackets = [count(body, bracket, first, last + 1) for bracket in (b"[", b"]")]
    if brackets[0] != brackets[1]:  # the list has a string, and the span ends before it
        return body, b""
    return b'%s"%s"%s' % (body[:first], CUT.encode(), body[last + 1 :]), body[first : last + 1]


def count(body: bytes, what: bytes, start: int, stop: int) -> int:
    """Counts like `bytes.count`, but in steps, between which other threads can run."""
    return sum(
        body.count(what, step, min(step + SEARCH_STEP, stop)) for step in range(start, stop, SEARCH_STEP)
    )


def read_numbers(text: bytes, dtype: np.dtype[Any], shape: list[int]) -> np.ndarray:
    """Parses one flat list, or lists nested like `shape`; returns the numbers, (n,). Raises Refusal otherwise."""
    expected, filled, start = math.prod(shape), 0, 0
    values = np.empty(expected, dtype)
    skeleton = bytearray()
    while start < len(text):
        stop = find(text, b",", start + NUMBERS_STEP)
        piece = text[start : stop if stop >= 0 else len(text)]
        numbers = converted(piece, dtype)
        if filled + len(numbers) > expected:
            raise invalid(f"shape has {expected} values, but data has more")
        values[filled : filled + len(numbers)] = numbers
        filled, start = filled + len(numbers), start + len(piece) + 1
        skeleton += piece.translate(None, DIGITS) + b","
    if filled != expected:
        raise invalid(f"shape has {expected} values, but data has {filled}")
    if skeleton[:-1] not in (nesting([expected]), nesting(shape)):
        raise invalid(f"data must be one flat list, or lists nested like shape {shape}")
    return values


def converted(piece: bytes, dtype: np.dtype[Any]) -> np.ndarray:
    """Parses the numbers of a piece of JSON, and ignores their lists; raises Refusal for values outside `dtype`."""
    others = piece.translate(None, NUMERIC).decode(errors="replace")
    if others:
        raise invalid(f"data holds {OTHERS.get(others[0], 'malformed JSON')}, but only numbers are allowed")
    try:
        wide = np.array(orjson.loads(b"[%s]" % piece.translate(FLAT)), np.float64)
    except (ValueError, OverflowError):
        raise invalid(
            "data holds malformed or too large numbers, empty lists, or lists without commas between them"
        ) from None
    if not len(wide):
        raise invalid("data holds an empty list")
    most = np.iinfo(dtype).max if dtype.kind == "u" else 0
    if dtype.kind == "u" and not ((wide >= 0) & (wide <= most) & (wide == np.trunc(wide))).all():
        raise invalid(
            f"data holds a number that is not an integer in [0, {most}], as UINT{8 * dtype.itemsize} requires"
        )
    with np.errstate(over="ignore"):  # the check for infinity follows
        numbers = wide.astype(dtype)
    if not np.isfinite(numbers).all():
        raise invalid("data holds a number that is too large for FP32")
    return numbers


def nesting(shape: list[int]) -> bytes:
    """Writes the brackets and commas of nested lists of this shape, without numbers."""
    one = b""
    for side in reversed(shape):
        one = b"[" + b",".join([one] * side) + b"]"
    return one
