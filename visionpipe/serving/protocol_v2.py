"""Implements the Open Inference Protocol, version 2, with its binary tensor extension, as Triton's clients use it.

The sources are https://github.com/kserve/open-inference-protocol and Triton's extension_binary_data.md. A request has
one of two inputs: `images` (n, height, width, channels) of the model's size, FP32 or UINT8 in [0, 255], or UINT16 for a
model of 16-bit images; or `files`, BYTES (n), image files. The outputs are `probabilities`, FP32 (n, classes), and
`labels`, BYTES (n): the label of each image, or a JSON list of its labels where the model answers with several.
"""

import math
import struct
from typing import Any

import numpy as np
import orjson
from fastapi import APIRouter, Request, Response

from visionpipe import __version__
from visionpipe.errors import ImageError
from visionpipe.serving.batching import Job
from visionpipe.serving.bodies import Refusal, decoded, invalid, read_body, read_json
from visionpipe.serving.numbers import CUT, cut_numbers, read_numbers
from visionpipe.serving.service import STATUS, Live, Service
from visionpipe.serving.settings import QUICK_BODY, V2_STRINGS

HEADER_LENGTH = "Inference-Header-Content-Length"
NUMBERS: dict[str, np.dtype[Any]] = {
    "FP32": np.dtype("<f4"),
    "UINT8": np.dtype("u1"),
    "UINT16": np.dtype("<u2"),
}
OUTPUTS = ("probabilities", "labels")
SIZES = {"type": "array", "items": {"type": "integer", "minimum": 0}}
TENSOR = {
    "type": "object",
    "properties": {
        "name": {"enum": ["images", "files"]},
        "datatype": {"enum": [*NUMBERS, "BYTES"]},
        "shape": SIZES,
        "data": {"type": "array"},
        "parameters": {"type": "object", "properties": {"binary_data_size": {"type": "integer"}}},
    },
    "required": ["name", "datatype", "shape"],
}
WANTED = {"type": "object", "properties": {"name": {"enum": OUTPUTS}}, "required": ["name"]}
REQUEST = {
    "type": "object",
    "properties": {
        "id": {"type": "string"},
        "inputs": {"type": "array", "items": TENSOR, "minItems": 1, "maxItems": 1},
        "outputs": {"type": "array", "items": WANTED},
    },
    "required": ["inputs"],
}
INTERFACE: dict[str, Any] = {
    "parameters": [
        {
            "name": HEADER_LENGTH,
            "in": "header",
            "schema": {"type": "integer", "minimum": 0},
            "description": "bytes of JSON, if binary tensors follow it",
        }
    ],
    "requestBody": {"required": True, "content": {"application/json": {"schema": REQUEST}}},
}


def router(service: Service) -> APIRouter:
    """Makes the routes below /v2."""
    routes = APIRouter(tags=["Open Inference Protocol v2"])

    def live_model(name: str, version: str | None = None) -> Live:
        live = service.present()
        if name != live.name or version not in (None, live.number):
            raise Refusal(404, "not_found", f"this server serves only {live.name} version {live.number}")
        return live

    @routes.get("/v2", summary="Name, version and extensions of the server")
    async def server() -> dict[str, Any]:
        return {"name": "visionpipe", "version": __version__, "extensions": ["binary_tensor_data"]}

    @routes.get("/v2/health/live", summary="Whether the process answers")
    async def alive() -> Response:
        return Response()

    @routes.get("/v2/health/ready", summary="Whether a model is loaded and the server is not shutting down")
    async def ready() -> Response:
        return Response(status_code=200 if service.ready else 503)

    @routes.get("/v2/models/{name}/ready", summary="Whether the model is live")
    @routes.get("/v2/models/{name}/versions/{version}/ready", summary="Whether this version is live")
    async def model_ready(name: str, version: str | None = None) -> Response:
        live_model(name, version)
        return Response(status_code=200 if service.ready else 503)

    @routes.get("/v2/models/{name}", summary="Inputs and outputs")
    @routes.get("/v2/models/{name}/versions/{version}", summary="Inputs and outputs of this version")
    async def metadata(name: str, version: str | None = None) -> dict[str, Any]:
        live = live_model(name, version)
        height, width = live.batcher.classifier.size
        channels = live.batcher.classifier.form.channels
        classes = len(live.batcher.classifier.labels)
        return {
            "name": live.name,
            "versions": [live.number],
            "platform": "onnx_onnxruntime",
            "inputs": [
                {"name": "images", "datatype": "FP32", "shape": [-1, height, width, channels]},
                {"name": "files", "datatype": "BYTES", "shape": [-1]},
            ],
            "outputs": [
                {"name": "probabilities", "datatype": "FP32", "shape": [-1, classes]},
                {"name": "labels", "datatype": "BYTES", "shape": [-1]},
            ],
        }

    @routes.post(
        "/v2/models/{name}/infer",
        summary="Probabilities and labels of tensors or image files",
        openapi_extra=INTERFACE,
    )
    @routes.post(
        "/v2/models/{name}/versions/{version}/infer",
        summary="Probabilities and labels by this version",
        openapi_extra=INTERFACE,
    )
    async def infer(request: Request, name: str, version: str | None = None) -> Response:
        live = live_model(name, version)
        service.make_room(1)
        body = await read_body(request, service.settings.max_body)
        length = request.headers.get(HEADER_LENGTH)
        header, images = await service.aside(
            len(body) > QUICK_BODY, read_request, body, length, live, service.settings.max_images
        )
        del body
        jobs = await service.answer(live, images)
        for job in jobs:
            error = job.future.exception()
            if isinstance(error, ImageError):
                raise Refusal(STATUS[error.code], error.code, error.reason)
        for job in jobs:
            service.count(live, job.future.result())
        return await service.aside(live.is_large(jobs), respond, header, jobs, live)

    return routes


def read_request(
    body: bytes, header_length: str | None, live: Live, most: int
) -> tuple[dict[str, Any], list[bytes] | list[np.ndarray]]:
    """Reads a request; returns its JSON and its images. Raises Refusal, also for more than `most` images."""
    header, numbers, binary = split(body, header_length, most)
    return header, read_input(header, numbers, binary, live, most)


def split(body: bytes, header_length: str | None, most: int) -> tuple[dict[str, Any], bytes, memoryview]:
    """Splits a body into its JSON, the list of numbers that was cut out of the JSON, and the binary tensors."""
    if header_length is not None and not (header_length.isascii() and header_length.isdigit()):
        raise invalid(f"{HEADER_LENGTH} is not a number")
    length = len(body) if header_length is None else int(header_length[:12])
    if length > len(body):
        raise invalid(f"{HEADER_LENGTH} exceeds the length of the body")
    text, numbers = cut_numbers(body if length == len(body) else body[:length], most + V2_STRINGS)
    header = read_json(text, most + V2_STRINGS)
    if not isinstance(header, dict):
        raise invalid("expected a JSON object with inputs")
    return header, numbers, memoryview(body)[length:]


def read_input(
    header: dict[str, Any], numbers: bytes, binary: memoryview, live: Live, most: int
) -> list[bytes] | list[np.ndarray]:
    """Reads the input as image files, or as images (height, width, channels); raises Refusal."""
    match header.get("inputs"):
        case [
            {"name": "images" | "files" as name, "datatype": str(datatype), "shape": list(shape)} as tensor
        ]:
            pass
        case _:
            raise invalid("expected one input, images or files, with name, datatype, shape and data")
    if not all(type(side) is int and side >= 0 for side in shape) or not shape or shape[0] < 1:
        raise invalid("shape must be a list of non-negative integers, with at least one image")
    if shape[0] > most:
        raise Refusal(413, "too_large", f"{shape[0]} images exceed {most}")
    size = parameters(tensor).get("binary_data_size")
    if size is not None and (size != len(binary) or type(size) is not int):
        raise invalid(f"binary_data_size is {size!r}, but the body holds {len(binary)} bytes of tensors")
    if name == "files":
        if datatype != "BYTES" or len(shape) != 1:
            raise invalid("files must have datatype BYTES and one dimension")
        files = strings(binary, shape[0]) if size is not None else [decoded(text) for text in listed(tensor)]
        if len(files) != shape[0]:
            raise invalid(f"shape has {shape[0]} files, but the request has {len(files)}")
        return files
    form = live.batcher.classifier.form
    expected = [shape[0], *live.batcher.classifier.size, form.channels]
    datatypes = list(NUMBERS)[: 3 if form.depth == 16 else 2]
    if shape != expected or datatype not in datatypes:
        raise invalid(f"images must have datatype {' or '.join(datatypes)} and shape {expected}")
    dtype, count = NUMBERS[datatype], math.prod(shape)
    if size is not None:
        if size != count * dtype.itemsize:
            raise invalid(f"{count} values of {datatype} are not {size} bytes")
        values = np.frombuffer(binary, dtype)
    else:
        text = numbers if tensor.get("data") == CUT else orjson.dumps(listed(tensor))
        values = read_numbers(text, dtype, shape)
    if not np.isfinite(values).all():
        raise invalid("images holds NaN or infinite values")
    return list(values.reshape(shape))


def parameters(node: dict[str, Any]) -> dict[str, Any]:
    """Returns the parameters of a request or tensor; raises Refusal."""
    content = node.get("parameters", {})
    if not isinstance(content, dict):
        raise invalid("parameters must be an object")
    return content


def listed(tensor: dict[str, Any]) -> list[Any]:
    """Returns the data of a tensor in JSON; raises Refusal."""
    data = tensor.get("data")
    if not isinstance(data, list):
        raise invalid("the input has neither data nor binary_data_size")
    return data


def strings(binary: memoryview, count: int) -> list[bytes]:
    """Splits BYTES elements, each of which follows its length in four bytes, little endian; raises Refusal."""
    elements: list[bytes] = []
    position = 0
    while position < len(binary):
        if len(elements) == count:
            raise invalid(f"shape has {count} files, but the request has more")
        if position + 4 > len(binary):
            raise invalid("the length of a BYTES element is cut off")
        (length,) = struct.unpack_from("<I", binary, position)
        position += 4 + length
        if position > len(binary):
            raise invalid("a BYTES element is cut off")
        elements.append(bytes(binary[position - length : position]))
    return elements


def respond(header: dict[str, Any], jobs: list[Job], live: Live) -> Response:
    """Answers with the requested outputs, by default all of them, each as JSON or binary as requested."""
    wanted = header.get("outputs") or [{"name": name} for name in OUTPUTS]
    all_binary = parameters(header).get("binary_data_output", False)
    probabilities = np.stack([job.future.result() for job in jobs])
    classifier, table = live.batcher.classifier, probabilities.astype("<f4")
    labels = [classifier.task.text(row, classifier.labels) for row in probabilities]
    outputs: dict[str, dict[str, Any]] = {}
    blobs = []
    for output in wanted if isinstance(wanted, list) else [None]:
        if not isinstance(output, dict) or output.get("name") not in OUTPUTS or output["name"] in outputs:
            raise invalid("outputs must be probabilities, labels or both, each once")
        name = output["name"]
        named: dict[str, Any] = {"name": name, "datatype": "BYTES", "shape": [len(labels)]}
        if name == "probabilities":
            named |= {"datatype": "FP32", "shape": list(table.shape)}
        if parameters(output).get("binary_data", all_binary):
            encoded = [label.encode() for label in labels]
            lengths = [struct.pack("<I", len(text)) + text for text in encoded]
            blob = b"".join(lengths) if name == "labels" else table.tobytes()
            named["parameters"] = {"binary_data_size": len(blob)}
            blobs.append(blob)
        else:
            named["data"] = labels if name == "labels" else orjson.Fragment(as_json(table))
        outputs[name] = named
    content = {"model_name": live.name, "model_version": live.number, "outputs": list(outputs.values())}
    if isinstance(header.get("id"), str):
        content["id"] = header["id"]
    answer = orjson.dumps(content)
    if not blobs:
        return Response(answer, media_type="application/json")
    headers = {HEADER_LENGTH: str(len(answer))}
    return Response(b"".join([answer, *blobs]), media_type="application/octet-stream", headers=headers)


def as_json(table: np.ndarray) -> bytes:
    """Writes all numbers as one flat list, row by row, because other threads cannot run during a call."""
    rows = (orjson.dumps(row.astype(np.float64), option=orjson.OPT_SERIALIZE_NUMPY)[1:-1] for row in table)
    return b"[" + b",".join(rows) + b"]"
