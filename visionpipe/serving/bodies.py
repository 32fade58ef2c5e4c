"""Reads request bodies within the limits, and extracts their image files and options."""

import base64
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import orjson
from python_multipart.multipart import parse_options_header
from starlette.datastructures import Headers
from starlette.requests import Request

from visionpipe.serving.settings import (
    JSON_STRINGS,
    MAX_JSON,
    MAX_PART_HEADERS,
    QUICK_BODY,
    SEARCH_STEP,
    Settings,
)

HEADER_NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


class Refusal(Exception):
    """Ends a request with a status and the answer `{code, reason, request_id}`."""

    def __init__(self, status: int, code: str, reason: str, **headers: str):
        super().__init__(reason)
        self.status, self.code, self.reason, self.headers = status, code, reason, headers


def invalid(reason: str) -> Refusal:
    """Makes the refusal of an invalid request."""
    return Refusal(400, "invalid_request", reason)


@dataclass
class Question:
    """A request to /predict: image files, the number of classes to list, and the threshold of unsure answers."""

    images: list[bytes] = field(default_factory=list)
    top_k: int | None = None
    unsure_below: float | None = None
    several: bool = False  # the images are a list: a bad image is an error in the answer, not a refusal


async def read_body(request: Request, limit: int) -> bytes:
    """Reads the body; raises Refusal as soon as it is known to be longer than `limit` bytes, and drops the rest."""
    refuse_encodings(request.headers)
    too_long = Refusal(413, "too_large", f"the body is longer than {limit:,} bytes")
    if int(request.headers.get("content-length", 0)) > limit:
        raise too_long
    body = bytearray()
    async for chunk in request.stream():
        if len(body) + len(chunk) > limit:
            raise too_long
        body += chunk
    return bytes(body)


def refuse_encodings(headers: Headers) -> None:
    """Raises Refusal for an encoded body: decompressing would let a few bytes become many. Chunks are accepted."""
    for name, plain in (("content-encoding", "identity"), ("transfer-encoding", "chunked")):
        for coding in ",".join(headers.getlist(name)).split(","):
            if coding.strip().lower() not in ("", plain):
                reason = f"the body has the {name} {coding.strip()[:20]}: send it unencoded"
                raise Refusal(415, "unsupported", reason, **{"Accept-Encoding": "identity"})


def read_question(body: bytes, content_type: str, settings: Settings) -> Question:
    """Reads a multipart form or JSON, by the content type; any other body is an image file. Raises Refusal."""
    kind = content_type.split(";")[0].strip().lower()
    if kind == "multipart/form-data":
        question = from_multipart(body, content_type, settings)
    elif kind == "application/json":
        question = from_json(body, settings)
    else:
        question = Question([body])
    if not question.images:
        raise invalid("no image in the request")
    if len(question.images) > settings.max_images:
        raise Refusal(413, "too_large", f"{len(question.images)} images exceed {settings.max_images}")
    return question


def from_multipart(body: bytes, content_type: str, settings: Settings) -> Question:
    """Reads a form. Every part with a file name is an image; the parts `top_k` and `unsure_below` are options."""
    _, parameters = parse_options_header(content_type[:1000])
    boundary = parameters.get(b"boundary")
    if not boundary:
        raise invalid("the multipart content type has no boundary")
    question = Question()
    for count, (start, stop) in enumerate(part_spans(body, boundary)):
        if count > settings.max_images + 2:
            raise Refusal(413, "too_large", f"more than {settings.max_images} images")
        disposition, start = read_part(body, start, stop)
        _, names = parse_options_header(disposition)
        if b"filename" in names:
            question.images.append(body[start:stop])
        elif names.get(b"name") in (b"top_k", b"unsure_below"):
            set_option(question, names[b"name"].decode(), number(body[start:stop]))
    question.several = len(question.images) > 1
    return question


def part_spans(body: bytes, boundary: bytes) -> Iterator[tuple[int, int]]:
    """Yields where each part starts and stops (RFC 2046, section 5.1.1); raises Refusal for a malformed body."""
    line, malformed = b"\r\n--" + boundary, invalid("malformed multipart body")
    if len(boundary) > 70:
        raise malformed
    stop = -2 if body.startswith(line[2:]) else find(body, line, 0)
    start = None
    while stop != -1:
        if start is not None:
            yield start, stop
        end = body.find(b"\r\n", stop + len(line), stop + len(line) + 100)
        rest = body[stop + len(line) : end if end >= 0 else stop + len(line) + 2]
        if rest.startswith(b"--"):
            return
        if rest.strip(b" \t") or end < 0:
            break
        start = end + 2
        stop = find(body, line, start)
    raise malformed


def read_part(body: bytes, start: int, stop: int) -> tuple[bytes | None, int]:
    """Reads a part's headers; returns its Content-Disposition, and where its content starts."""
    if body.startswith(b"\r\n", start):
        return None, start + 2
    end = body.find(b"\r\n\r\n", start, min(stop, start + MAX_PART_HEADERS))
    headers = {}
    for row in re.sub(rb"\r\n[ \t]+", b" ", body[start : max(start, end)]).split(b"\r\n"):
        name, colon, value = row.partition(b":")
        if not colon or not HEADER_NAME.fullmatch(name):
            raise invalid("malformed multipart body")
        headers[name.lower()] = value.strip()
    return headers.get(b"content-disposition"), end + 4


def find(body: bytes, what: bytes, start: int) -> int:
    """Searches like `bytes.find`, but in steps, because no other thread can run during a call of `bytes.find`."""
    for step in range(start, len(body), SEARCH_STEP):
        position = body.find(what, step, step + SEARCH_STEP + len(what) - 1)
        if position >= 0:
            return position
    return -1


def from_json(body: bytes, settings: Settings) -> Question:
    """Reads `{"image": base64}` or `{"images": [base64, …]}`, with `top_k` and `unsure_below`."""
    content = read_json(body, settings.max_images + JSON_STRINGS)
    if not isinstance(content, dict):
        raise invalid('expected {"image": base64} or {"images": [base64, …]}')
    unknown = content.keys() - {"image", "images", "top_k", "unsure_below"}
    if unknown:
        raise invalid("unknown key: the keys are image, images, top_k and unsure_below")
    question = Question(several="images" in content)
    texts = content.get("images", [])
    if not isinstance(texts, list):
        raise invalid("images must be a list")
    question.images = [decoded(text) for text in ([content["image"]] if "image" in content else []) + texts]
    for name in ("top_k", "unsure_below"):
        if content.get(name) is not None:
            set_option(question, name, content[name])
    return question


def read_json(body: bytes, strings: int) -> Any:
    """Parses JSON. Raises Refusal for a large body of more than `strings` strings, or MAX_JSON bytes outside them.

    These limits exist because no other thread can run during parsing, and because two bytes of JSON can become a
    hundred bytes of objects.
    """
    if (
        len(body) > QUICK_BODY
        and sum(stop - start for start, stop in outside_strings(body, strings)) > MAX_JSON
    ):
        raise invalid(f"more than {MAX_JSON} bytes of JSON outside its strings")
    try:
        return orjson.loads(body)
    except ValueError:
        raise invalid("malformed JSON") from None


def outside_strings(body: bytes, strings: int) -> list[tuple[int, int]]:
    """Returns the spans of JSON outside its strings; raises Refusal for more than `strings` strings."""
    quotes = sum(body.count(b'"', step, step + SEARCH_STEP) for step in range(0, len(body), SEARCH_STEP))
    if quotes > 2 * strings:
        raise Refusal(413, "too_large", f"more than {strings} strings in JSON")
    spans, start = [], 0
    while (quote := find(body, b'"', start)) >= 0:
        spans.append((start, quote))
        start = end_of_string(body, quote + 1)
    return [*spans, (start, len(body))]


def end_of_string(body: bytes, start: int) -> int:
    """Returns the end of the string that starts at `start`: after the first quote that no \\ escapes."""
    while (quote := find(body, b'"', start)) >= 0:
        before = body[start:quote]
        if (len(before) - len(before.rstrip(b"\\"))) % 2 == 0:
            return quote + 1
        start = quote + 1
    return len(body)


def decoded(text: object) -> bytes:
    """Decodes the base64 of an image file; raises Refusal."""
    refused = invalid("an image is not plain base64: remove line breaks and any data: prefix")
    if not isinstance(text, str):
        raise refused
    pieces = [text[start : start + SEARCH_STEP] for start in range(0, len(text), SEARCH_STEP)]
    if any("=" in piece for piece in pieces[:-1]):
        raise refused
    try:
        return b"".join(base64.b64decode(piece, validate=True) for piece in pieces)
    except ValueError:
        raise refused from None


def number(text: bytes) -> object:
    """Parses a number of a form or query; returns None if it is not one."""
    try:
        return float(text) if len(text) < 32 else None
    except ValueError:
        return None


def set_option(question: Question, name: str, value: object) -> None:
    """Sets `top_k` or `unsure_below`; raises Refusal for other names and for impossible values."""
    if name not in ("top_k", "unsure_below"):
        raise invalid("unknown option: the options are top_k and unsure_below")
    valid = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if name == "top_k" and valid and value >= 1 and value == int(value):  # type: ignore[operator, call-overload]
        question.top_k = int(value)  # type: ignore[call-overload]
    elif name == "unsure_below" and valid and 0 <= value <= 1:  # type: ignore[operator]
        question.unsure_below = float(value)  # type: ignore[arg-type]
    else:
        expected = "an integer of at least 1" if name == "top_k" else "a number in [0, 1]"
        raise invalid(f"{name} must be {expected}")
