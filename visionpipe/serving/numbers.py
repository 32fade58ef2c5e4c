"""The numbers of a large tensor in JSON, read in pieces.

The parser lets no other thread run before it is done. So the tensor's text is cut out of the request, and
parsed a few thousand numbers at a time.
"""

import math
import secrets
from typing import Any

import numpy as np
import orjson

from visionpipe.serving.bodies import QUICK, STEP, between_texts, find, invalid

CUT = secrets.token_hex(16)  # stands where the text was cut out; no client can know it
PIECE = 2**16  # bytes that are parsed at a time
FLAT = bytes.maketrans(b"[]", b"  ")
DIGITS = bytes(set(range(256)) - set(b"[],"))  # all but what a list is made of
NUMERIC = b"0123456789+-.eE \t\r\n[],"  # what lists of numbers are made of
OTHERS = {'"': "a text", "t": "true", "f": "false", "n": "null", "{": "an object"}  # how they begin


def cut_numbers(body: bytes, texts: int) -> tuple[bytes, bytes]:
    """JSON with CUT in place of its longest list of anything but texts, where it is long, and that list."""
    if len(body) <= QUICK:
        return body, b""
    start, stop = max(between_texts(body, texts), key=lambda span: span[1] - span[0])
    brace = find(body, b"}", start)  # behind the list, unless a text comes first
    stop = brace if start <= brace < stop else stop
    first, last = body.find(b"[", start, start + PIECE), body.rfind(b"]", start, stop)
    if body[start:first].strip() != b":" or last < first:
        return body, b""
    if count(body, b"[", first, last + 1) != count(
        body, b"]", first, last + 1
    ):  # a text in it has cut it off
        return body, b""
    return b'%s"%s"%s' % (body[:first], CUT.encode(), body[last + 1 :]), body[first : last + 1]


def count(body: bytes, what: bytes, start: int, stop: int) -> int:
    """As `bytes.count`, in steps, between which other threads may run."""
    return sum(body.count(what, step, min(step + STEP, stop)) for step in range(start, stop, STEP))


def read_numbers(text: bytes, dtype: np.dtype[Any], shape: list[int]) -> np.ndarray:
    """The numbers, (n,), of one list of all or of lists nested as `shape` says; refuses anything else."""
    expected, filled, start = math.prod(shape), 0, 0
    values = np.empty(expected, dtype)
    skeleton = bytearray()
    while start < len(text):
        stop = find(text, b",", start + PIECE)
        piece = text[start : stop if stop >= 0 else len(text)]
        numbers = converted(piece, dtype)
        if filled + len(numbers) > expected:
            raise invalid(f"shape says {expected} values, more are there")
        values[filled : filled + len(numbers)] = numbers
        filled, start = filled + len(numbers), start + len(piece) + 1
        skeleton += piece.translate(None, DIGITS) + b","
    if filled != expected:
        raise invalid(f"shape says {expected} values, {filled} are there")
    if skeleton[:-1] not in (nesting([expected]), nesting(shape)):
        raise invalid(f"data is neither one list nor lists nested as shape {shape} says")
    return values


def converted(piece: bytes, dtype: np.dtype[Any]) -> np.ndarray:
    """The numbers of a piece of JSON, whatever lists they are in; refuses those that `dtype` has not."""
    others = piece.translate(None, NUMERIC).decode(errors="replace")
    if others:
        raise invalid(f"data holds {OTHERS.get(others[0], 'malformed JSON')}, not numbers only")
    try:
        wide = np.array(orjson.loads(b"[%s]" % piece.translate(FLAT)), np.float64)
    except (ValueError, OverflowError):
        raise invalid(
            "data holds malformed or too large numbers, or lists that are empty or not separated"
        ) from None
    if not len(wide):
        raise invalid("data holds an empty list")
    if dtype.kind == "u" and not ((wide >= 0) & (wide <= 255) & (wide == np.trunc(wide))).all():
        raise invalid("data holds a number that is not whole and in [0, 255], as UINT8 is")
    with np.errstate(over="ignore"):  # refused in the next line
        numbers = wide.astype(dtype)
    if not np.isfinite(numbers).all():
        raise invalid("data holds a number that is too large for FP32")
    return numbers


def nesting(shape: list[int]) -> bytes:
    """Brackets and commas of lists of this shape, without the numbers."""
    one = b""
    for side in reversed(shape):
        one = b"[" + b",".join([one] * side) + b"]"
    return one
