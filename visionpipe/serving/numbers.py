"""The numbers of a large tensor in JSON, read in pieces.

The parser lets no other thread run before it is done. So the tensor's text is cut out of the request, and
parsed a few thousand numbers at a time.
"""

import secrets
from typing import Any

import numpy as np
import orjson

from visionpipe.serving.bodies import QUICK, between_texts, find, invalid

CUT = secrets.token_hex(16)  # stands where the text was cut out; no client can know it
PIECE = 2**16  # bytes that are parsed at a time
FLAT = bytes.maketrans(b"[]", b"  ")
DIGITS = bytes(set(range(256)) - set(b"[],"))  # all but what a list is made of
DEPTH = 32  # lists in lists: as many as an array of NumPy had dimensions


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
    return b'%s"%s"%s' % (body[:first], CUT.encode(), body[last + 1 :]), body[first : last + 1]


def read_numbers(text: bytes, dtype: np.dtype[Any], count: int) -> np.ndarray:
    """`count` numbers, (count,), of a list or of lists of equal length; refuses anything else."""
    values, filled, start = np.empty(count, dtype), 0, 0
    skeleton = bytearray()
    while start < len(text):
        stop = find(text, b",", start + PIECE)
        piece = text[start : stop if stop >= 0 else len(text)]
        try:
            numbers = np.array(orjson.loads(b"[%s]" % piece.translate(FLAT)), dtype)
        except (ValueError, TypeError, OverflowError):
            raise invalid(
                "data does not hold numbers of the tensor's type only, as many in each list"
            ) from None
        if numbers.ndim != 1 or not len(numbers):
            raise invalid("data does not hold numbers only")
        if filled + len(numbers) > count:
            raise invalid(f"shape says {count} values, more are there")
        values[filled : filled + len(numbers)] = numbers
        filled, start = filled + len(numbers), start + len(piece) + 1
        skeleton += piece.translate(None, DIGITS) + b","
    if filled != count:
        raise invalid(f"shape says {count} values, {filled} are there")
    if not is_regular(bytes(skeleton[:-1])):
        raise invalid("data holds lists of different lengths")
    return values


def is_regular(skeleton: bytes) -> bool:
    """Whether all lists of a depth are equal. skeleton: brackets and commas, without the numbers."""
    depth = len(skeleton) - len(skeleton.lstrip(b"["))
    one = b""  # what each list of a depth would be if all were as the first
    for level in range(min(depth, DEPTH)):
        start = depth - level
        commas = (skeleton.find(one + b"]", start) - start) // (len(one) + 1)
        one = b"[" + (one + b",") * commas + one + b"]"
    return depth > 0 and skeleton == one
