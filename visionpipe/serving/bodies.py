"""Request bodies: read within the limit, and taken apart into image files."""

import base64
import math
from dataclasses import dataclass, field
from typing import Any

import orjson
import python_multipart
from python_multipart.exceptions import FormParserError
from starlette.requests import Request

from visionpipe.serving.settings import Settings


class Refusal(Exception):
    """Ends a request with this status and `{code, reason, request_id}`."""

    def __init__(self, status: int, code: str, reason: str, **headers: str):
        super().__init__(reason)
        self.status, self.code, self.reason, self.headers = status, code, reason, headers


@dataclass
class Question:
    """What a client asks: image files, how many classes to list, and below what it calls an answer unsure."""

    images: list[bytes] = field(default_factory=list)
    top_k: int | None = None
    unsure_below: float | None = None
    several: bool = False  # asked as a list: the answer is one, even of one image


async def read_body(request: Request, limit: int) -> bytes:
    """The whole body; refused as soon as it is known to be longer than `limit`, without keeping the rest."""
    too_long = Refusal(413, "too_large", f"the body is longer than {limit:,} bytes")
    if int(request.headers.get("content-length", 0)) > limit:
        raise too_long
    body = bytearray()
    async for chunk in request.stream():
        if len(body) + len(chunk) > limit:
            raise too_long
        body += chunk
    return bytes(body)


def take_apart(body: bytes, content_type: str, settings: Settings) -> Question:
    """A multipart form and JSON are what they say they are; anything else is taken for an image file."""
    kind = content_type.split(";")[0].strip().lower()
    if kind == "multipart/form-data":
        question = from_multipart(body, content_type, settings)
    elif kind == "application/json":
        question = from_json(body)
    else:
        question = Question([body])
    if not question.images:
        raise Refusal(400, "invalid_request", "no image in the request")
    if len(question.images) > settings.max_images:
        raise Refusal(413, "too_large", f"{len(question.images)} images, more than {settings.max_images}")
    return question


def from_multipart(body: bytes, content_type: str, settings: Settings) -> Question:
    """Every part with a file name is an image; parts `top_k` and `unsure_below` are options."""
    _, parameters = python_multipart.multipart.parse_options_header(content_type)
    boundary = parameters.get(b"boundary")
    if not boundary:
        raise Refusal(400, "invalid_request", "multipart without a boundary")
    parts: list[tuple[dict[bytes, bytes], bytearray]] = []
    header = [bytearray(), bytearray()]  # name and value of the one that is being read
    complete = False

    def begin() -> None:
        if len(parts) > settings.max_images + 2:
            raise Refusal(413, "too_large", f"more than {settings.max_images} images")
        parts.append(({}, bytearray()))

    def end_header() -> None:
        parts[-1][0][bytes(header[0]).lower()] = bytes(header[1])
        header[:] = bytearray(), bytearray()

    def end() -> None:
        nonlocal complete
        complete = True

    callbacks: Any = {
        "on_part_begin": begin,
        "on_header_field": lambda data, start, stop: header[0].extend(data[start:stop]),
        "on_header_value": lambda data, start, stop: header[1].extend(data[start:stop]),
        "on_header_end": end_header,
        "on_part_data": lambda data, start, stop: parts[-1][1].extend(data[start:stop]),
        "on_end": end,
    }
    try:
        python_multipart.MultipartParser(boundary, callbacks).write(body)
    except FormParserError:
        complete = False
    if not complete:
        raise Refusal(400, "invalid_request", "malformed multipart body")
    question = Question()
    for headers, content in parts:
        _, names = python_multipart.multipart.parse_options_header(headers.get(b"content-disposition"))
        if b"filename" in names:
            question.images.append(bytes(content))
        elif names.get(b"name") in (b"top_k", b"unsure_below"):
            set_option(question, names[b"name"].decode(), number(bytes(content)))
    question.several = len(question.images) > 1
    return question


def from_json(body: bytes) -> Question:
    """`{"image": base64}` or `{"images": [base64, …]}`, with `top_k` and `unsure_below`."""
    try:
        content = orjson.loads(body)
    except ValueError:
        raise Refusal(400, "invalid_request", "malformed JSON") from None
    if not isinstance(content, dict):
        raise Refusal(400, "invalid_request", 'expected {"image": base64} or {"images": [base64, …]}')
    unknown = content.keys() - {"image", "images", "top_k", "unsure_below"}
    if unknown:
        raise Refusal(400, "invalid_request", "unknown key: known are image, images, top_k, unsure_below")
    question = Question(several="images" in content)
    texts = content.get("images", [])
    if not isinstance(texts, list):
        raise Refusal(400, "invalid_request", "images is not a list")
    question.images = [decoded(text) for text in ([content["image"]] if "image" in content else []) + texts]
    for name in ("top_k", "unsure_below"):
        if content.get(name) is not None:
            set_option(question, name, content[name])
    return question


def decoded(text: object) -> bytes:
    try:
        if isinstance(text, str):
            return base64.b64decode(text, validate=True)
    except ValueError:
        pass
    raise Refusal(400, "invalid_request", "an image is not plain base64 (no line breaks, no data: prefix)")


def number(text: bytes) -> object:
    try:
        return float(text) if len(text) < 32 else None
    except ValueError:
        return None


def set_option(question: Question, name: str, value: object) -> None:
    """Sets `top_k` or `unsure_below`; refuses other names and values."""
    if name not in ("top_k", "unsure_below"):
        raise Refusal(400, "invalid_request", "unknown option: known are top_k and unsure_below")
    valid = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if name == "top_k" and valid and value >= 1 and value == int(value):  # type: ignore[operator, call-overload]
        question.top_k = int(value)  # type: ignore[call-overload]
    elif name == "unsure_below" and valid and 0 <= value <= 1:  # type: ignore[operator]
        question.unsure_below = float(value)  # type: ignore[arg-type]
    else:
        expected = "a whole number, at least 1" if name == "top_k" else "a number in [0, 1]"
        raise Refusal(400, "invalid_request", f"{name} must be {expected}")
