"""The Open Inference Protocol, version 2, with its binary tensor extension: what Triton's clients speak.

https://github.com/kserve/open-inference-protocol and Triton's extension_binary_data.md. A request has one of
two inputs: `images`, FP32 or UINT8 (n, height, width, 3) in [0, 255], resized already, or `files`, BYTES (n),
image files. The outputs are `probabilities`, FP32 (n, classes), and `labels`, BYTES (n).
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
from visionpipe.serving.bodies import QUICK, Refusal, decoded, invalid, read_body, read_json
from visionpipe.serving.numbers import CUT, cut_numbers, read_numbers
from visionpipe.serving.service import STATUS, Live, Service

HEADER_LENGTH = "Inference-Header-Content-Length"
FLOATS: dict[str, np.dtype[Any]] = {"FP32": np.dtype("<f4"), "UINT8": np.dtype("u1")}
OUTPUTS = ("probabilities", "labels")
TEXTS = 256  # of a request's JSON beside its files: names, the id, parameters
SIZES = {"type": "array", "items": {"type": "integer", "minimum": 0}}
TENSOR = {
    "type": "object",
    "properties": {
        "name": {"enum": ["images", "files"]},
        "datatype": {"enum": [*FLOATS, "BYTES"]},
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
            "description": "bytes of JSON, where tensors in binary follow them",
        }
    ],
    "requestBody": {"required": True, "content": {"application/json": {"schema": REQUEST}}},
}


def router(service: Service) -> APIRouter:
    routes = APIRouter(tags=["Open Inference Protocol v2"])

    def named(name: str, version: str | None = None) -> Live:
        live = service.present()
        if name != live.name or version not in (None, live.number):
            raise Refusal(404, "not_found", f"only {live.name} version {live.number} is served")
        return live

    @routes.get("/v2", summary="Name, version and extensions of the server")
    async def server() -> dict[str, Any]:
        return {"name": "visionpipe", "version": __version__, "extensions": ["binary_tensor_data"]}

    @routes.get("/v2/health/live", summary="The process answers")
    async def alive() -> Response:
        return Response()

    @routes.get("/v2/health/ready", summary="A model is loaded, and the server is not ending")
    async def ready() -> Response:
        return Response(status_code=200 if service.ready else 503)

    @routes.get("/v2/models/{name}/ready", summary="The model answers")
    @routes.get("/v2/models/{name}/versions/{version}/ready", summary="This version answers")
    async def model_ready(name: str, version: str | None = None) -> Response:
        named(name, version)
        return Response(status_code=200 if service.ready else 503)

    @routes.get("/v2/models/{name}", summary="Inputs and outputs")
    @routes.get("/v2/models/{name}/versions/{version}", summary="Inputs and outputs of this version")
    async def metadata(name: str, version: str | None = None) -> dict[str, Any]:
        live = named(name, version)
        height, width = live.batcher.classifier.size
        classes = len(live.batcher.classifier.labels)
        return {
            "name": live.name,
            "versions": [live.number],
            "platform": "onnx_onnxruntime",
            "inputs": [
                {"name": "images", "datatype": "FP32", "shape": [-1, height, width, 3]},
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
        summary="The same, of this version only",
        openapi_extra=INTERFACE,
    )
    async def infer(request: Request, name: str, version: str | None = None) -> Response:
        live = named(name, version)
        service.make_room(1)
        body = await read_body(request, service.settings.max_body)
        length = request.headers.get(HEADER_LENGTH)
        header, images = await service.aside(
            len(body) > QUICK, read_request, body, length, live, service.settings.max_images
        )
        del body
        jobs = await service.answer(live, images)
        for job in jobs:
            error = job.future.exception()
            if isinstance(error, ImageError):
                raise Refusal(STATUS[error.code], error.code, error.reason)
        labels = [live.batcher.classifier.labels[int(job.future.result().argmax())] for job in jobs]
        for label in labels:
            service.metrics.predictions.labels(label, live.number).inc()
        return await service.aside(live.is_large(jobs), respond, header, jobs, labels, live)

    return routes


def read_request(
    body: bytes, header_length: str | None, live: Live, most: int
) -> tuple[dict[str, Any], list[bytes] | list[np.ndarray]]:
    """The JSON part, and the images; refuses more than `most` of them."""
    header, numbers, binary = split(body, header_length, most)
    return header, read_input(header, numbers, binary, live, most)


def split(body: bytes, header_length: str | None, most: int) -> tuple[dict[str, Any], bytes, memoryview]:
    """The JSON part, the text of the tensor that was cut out of it, and the tensors that follow it."""
    if header_length is not None and not (header_length.isascii() and header_length.isdigit()):
        raise invalid(f"{HEADER_LENGTH} is not a number")
    length = len(body) if header_length is None else int(header_length[:12])
    if length > len(body):
        raise invalid(f"{HEADER_LENGTH} is longer than the body")
    text, numbers = cut_numbers(body if length == len(body) else body[:length], most + TEXTS)
    header = read_json(text, most + TEXTS)
    if not isinstance(header, dict):
        raise invalid("expected a JSON object with inputs")
    return header, numbers, memoryview(body)[length:]


def read_input(
    header: dict[str, Any], numbers: bytes, binary: memoryview, live: Live, most: int
) -> list[bytes] | list[np.ndarray]:
    """The one input as image files, or as float32 or uint8 (height, width, 3) images."""
    match header.get("inputs"):
        case [
            {"name": "images" | "files" as name, "datatype": str(datatype), "shape": list(shape)} as tensor
        ]:
            pass
        case _:
            raise invalid("expected one input, images or files, with name, datatype, shape and data")
    if not all(type(side) is int and side >= 0 for side in shape) or not shape or shape[0] < 1:
        raise invalid("shape is not a list of sizes, with at least one image")
    if shape[0] > most:
        raise Refusal(413, "too_large", f"{shape[0]} images, more than {most}")
    size = parameters(tensor).get("binary_data_size")
    if size is not None and (size != len(binary) or type(size) is not int):
        raise invalid(f"binary_data_size is {size!r}, the body holds {len(binary)} bytes of tensors")
    if name == "files":
        if datatype != "BYTES" or len(shape) != 1:
            raise invalid("files is BYTES with one dimension")
        files = strings(binary, shape[0]) if size is not None else [decoded(text) for text in listed(tensor)]
        if len(files) != shape[0]:
            raise invalid(f"shape says {shape[0]} files, {len(files)} are there")
        return files
    expected = [shape[0], *live.batcher.classifier.size, 3]
    if shape != expected or datatype not in FLOATS:
        raise invalid(f"images is FP32 or UINT8 with shape {expected}")
    dtype, count = FLOATS[datatype], math.prod(shape)
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
    found = node.get("parameters", {})
    if not isinstance(found, dict):
        raise invalid("parameters is not an object")
    return found


def listed(tensor: dict[str, Any]) -> list[Any]:
    data = tensor.get("data")
    if not isinstance(data, list):
        raise invalid("the input has neither data nor binary_data_size")
    return data


def strings(binary: memoryview, count: int) -> list[bytes]:
    """BYTES elements: each after its length, four bytes little endian."""
    found: list[bytes] = []
    position = 0
    while position < len(binary):
        if len(found) == count:
            raise invalid(f"shape says {count} files, more are there")
        if position + 4 > len(binary):
            raise invalid("a length of a BYTES element is cut off")
        (length,) = struct.unpack_from("<I", binary, position)
        position += 4 + length
        if position > len(binary):
            raise invalid("a BYTES element is cut off")
        found.append(bytes(binary[position - length : position]))
    return found


def respond(header: dict[str, Any], jobs: list[Job], labels: list[str], live: Live) -> Response:
    """The outputs that were asked for, all by default, as JSON or binary as asked for."""
    wanted = header.get("outputs") or [{"name": name} for name in OUTPUTS]
    all_binary = parameters(header).get("binary_data_output", False)
    table = np.stack([job.future.result() for job in jobs]).astype("<f4")
    outputs: dict[str, dict[str, Any]] = {}
    blobs = []
    for output in wanted if isinstance(wanted, list) else [None]:
        if not isinstance(output, dict) or output.get("name") not in OUTPUTS or output["name"] in outputs:
            raise invalid("outputs are probabilities and labels, each once")
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
    """One list of all numbers, written row by row: one call would keep other threads waiting."""
    rows = (orjson.dumps(row.astype(np.float64), option=orjson.OPT_SERIALIZE_NUMPY)[1:-1] for row in table)
    return b"[" + b",".join(rows) + b"]"
