"""Makes requests that a server must refuse, and well-formed requests for fuzzing."""

import base64
import gzip
import json
import random
import struct
from typing import Any

from servers import form, picture

PNG = picture()
DEEP = b"[" * 100_000
V2 = {"name": "images", "datatype": "FP32", "shape": [1, 16, 20, 3]}


def http_request(
    body: bytes, content_type: str | None = None, path: str = "/predict", method: str = "POST", **headers: Any
) -> bytes:
    """Makes a request with its length. `headers` replaces or adds headers; _ in a name stands for -."""
    lines = {"Host": "x", "Content-Length": str(len(body)), "Connection": "close"}
    if content_type is not None:
        lines["Content-Type"] = content_type
    lines |= {name.replace("_", "-"): value for name, value in headers.items()}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode("latin-1") + body


def as_json(content: Any, path: str = "/predict", **headers: Any) -> bytes:
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    return http_request(body, "application/json", path, **headers)


def multipart(body: bytes, content_type: str = "multipart/form-data; boundary=x") -> bytes:
    return http_request(body, content_type)


def infer(tensor: dict[str, Any], binary: bytes = b"", **extra: Any) -> bytes:
    head = json.dumps({"inputs": [V2 | tensor], **extra}).encode()
    return as_json(head + binary, "/v2/models/linear/infer", Inference_Header_Content_Length=len(head))


def malformed() -> dict[str, bytes]:
    """Makes requests that must get a status of 4xx."""
    part = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
    files = "/v2/models/linear/infer"
    return {
        "no content type, a form": http_request(form(PNG)[0]),
        "no content type, JSON": http_request(b'{"image": "aaaa"}'),
        "an empty content type": http_request(b"text", ""),
        "a content type of 10,000 letters": http_request(b"text", "a" * 10_000),
        "a form without boundary": multipart(form(PNG)[0], "multipart/form-data"),
        "a form with another boundary": multipart(form(PNG)[0], "multipart/form-data; boundary=y"),
        "a form with a boundary of 10,000 letters": multipart(
            form(PNG)[0], f"multipart/form-data; boundary={'x' * 10_000}"
        ),
        "a form that does not end": multipart(form(PNG)[0][:-7]),
        "a form with half a header": multipart(b"--x\r\nContent-Disp"),
        "a form with a header of 1 MB": multipart(b"--x\r\n" + b"a" * 10**6 + b": b\r\n\r\n\r\n--x--\r\n"),
        "a form of 10,000 parts": multipart(part * 10_000 + b"--x--\r\n"),
        "a form in a form": multipart(part + form(PNG)[0] + b"\r\n--x--\r\n"),
        "a form without a file": multipart(
            b'--x\r\nContent-Disposition: form-data; name="file"\r\n\r\n--x--\r\n'
        ),
        "a form without names": multipart(b"--x\r\n\r\ncontent\r\n--x--\r\n"),
        "half of JSON": as_json(b'{"image": "'),
        "JSON, nested deeply": as_json(DEEP),
        "JSON, nested deeply within": as_json(b'{"images": ' + DEEP + b"]" * 100_000 + b"}"),
        "JSON, objects nested deeply": as_json(b'{"image":' * 50_000),
        "JSON with NaN": as_json(b'{"image": "aaaa", "top_k": NaN}'),
        "JSON with Infinity": as_json(b'{"image": "aaaa", "unsure_below": -Infinity}'),
        "JSON with 1e999": as_json(b'{"image": "aaaa", "unsure_below": 1e999}'),
        "JSON with an integer of 5,000 digits": as_json(b'{"image": "a", "top_k": ' + b"9" * 5000 + b"}"),
        "JSON with half a surrogate": as_json(b'{"image": "\\ud800"}'),
        "JSON that is not UTF-8": as_json(b'{"image": "\xff"}'),
        "JSON with a byte order mark": as_json(b'\xef\xbb\xbf{"image": "aaaa"}'),
        "JSON null": as_json(None),
        "JSON with an unknown key": as_json({"image": "aaaa", "url": "http://127.0.0.1/"}),
        "base64 with a data: prefix": as_json({"image": "data:image/png;base64,aaaa"}),
        "images that are numbers": as_json({"images": [1, 2]}),
        "a thousand images": as_json({"images": ["aaaa"] * 1000}),
        "top_k of 5,000 digits": http_request(PNG, path=f"/predict?top_k={'9' * 5000}"),
        "top_k of NaN": http_request(PNG, path="/predict?top_k=nan"),
        "an unknown option": http_request(PNG, path="/predict?debug=1"),
        "v2: no inputs": as_json({}, files),
        "v2: a shape of 10¹⁸": infer({"shape": [10**18] * 4, "data": []}),
        "v2: a negative shape": infer({"shape": [-1, 16, 20, 3], "data": []}),
        "v2: a shape of floats": infer({"shape": [1.5], "data": []}),
        "v2: too few values": infer({"data": [0] * 5}),
        "v2: nested values": infer({"data": [[[[[0] * 100] * 3] * 3]]}),
        "v2: strings for numbers": infer({"data": ["x"] * 960}),
        "v2: NaN in binary": infer(
            {"parameters": {"binary_data_size": 3840}}, struct.pack("<f", float("nan")) * 960
        ),
        "v2: a binary size that is not there": infer({"parameters": {"binary_data_size": 10**12}}, b"abc"),
        "v2: parameters that are a list": infer({"parameters": [1]}),
        "v2: lengths beyond the end": infer(
            {"name": "files", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": 8}},
            b"\xff\xff\xff\x7fabcd",
        ),
        "v2: a header length of 1,000 digits": as_json({}, files, Inference_Header_Content_Length="9" * 1000),
        "v2: a negative header length": as_json({}, files, Inference_Header_Content_Length="-1"),
        "v2: another model": as_json({}, "/v2/models/%2e%2e%2fetc/infer"),
        "no HTTP at all": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),
        "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "an unknown method": b"BREW / HTTP/1.1\r\nHost: x\r\n\r\n",
        "TRACE": http_request(b"", method="TRACE", path="/"),
        "a length of letters": http_request(PNG, Content_Length="many"),
        "a negative length": http_request(PNG, Content_Length="-1"),
        "a length of 1,000 digits": http_request(PNG, Content_Length="9" * 1000),
        "two lengths": b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        "a length and chunks": http_request(b"0\r\n\r\n", Transfer_Encoding="chunked"),
        "chunks of no number": http_request(b"zz\r\nabc\r\n", Content_Length="", Transfer_Encoding="chunked"),
        "a header with a null": b"GET / HTTP/1.1\r\nHost: x\r\na: \0\r\n\r\n",
        "a header without a name": b"GET / HTTP/1.1\r\nHost: x\r\n: b\r\n\r\n",
        "an address of 100,000 letters": http_request(b"", method="GET", path="/" + "a" * 100_000),
        "a path that climbs": http_request(b"", method="GET", path="/page/../../../etc/passwd"),
        "a gzipped image": http_request(gzip.compress(PNG), Content_Encoding="gzip"),
        "a gzipped view": http_request(gzip.compress(PNG), path="/view", Content_Encoding="gzip"),
        "gzipped JSON for v2": as_json(gzip.compress(b"{}"), files, Content_Encoding="deflate, br"),
        "chunks of gzip": chunked(gzip.compress(PNG), "gzip, chunked"),
        "gzip without chunks": chunked(gzip.compress(PNG), "gzip"),
        "chunks, folded": chunked(PNG, "\r\n chunked"),
        "a folded header": http_request(PNG, a="b\r\n c"),
        "line feeds alone": http_request(PNG).replace(b"\r\n", b"\n"),
        "CONNECT": b"CONNECT example.org:443 HTTP/1.1\r\nHost: example.org:443\r\n\r\nGET /healthz HTTP/1.1\r\n\r\n",
        "OPTIONS of all": http_request(b"", path="*", method="OPTIONS"),
        "OPTIONS": http_request(b"", method="OPTIONS"),
        "a request as the body of an upgrade": upgrading(http_request(b"", method="GET", path="/model")),
        "the same, to a WebSocket": upgrading(http_request(b"", method="GET", path="/model"), "websocket"),
        "chunks with endless extensions": chunked(b"")[:-5] + b"1;" + b"a" * 200_000,
        "chunks with endless trailers": chunked(b"")[:-2] + b"a: b\r\n" * 20_000,
        "a body beyond the limit, then closed": http_request(bytes(21 * 2**20)),
        "a form with a line before its end": multipart(part + PNG + b"\r\n--x-\r\n"),
        "a form of 10,000 headers": multipart(b"--x\r\n" + b"a: b\r\n" * 10_000 + b"\r\n\r\n--x--\r\n"),
        "100,000 empty images": as_json(b'{"images": [' + b'"",' * 100_000 + b'""]}'),
        "100,000 empty objects": as_json(b'{"images": [' + b"{}," * 100_000 + b"{}]}"),
        "padding within base64": as_json({"image": "QQ==" * 2**19}),
        "v2: 100,000 empty files": infer(
            {"name": "files", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": 400_000}},
            bytes(400_000),
        ),
        "v2: 100,000 lists": infer({"data": [[0]] * 100_000}),
        "v2: many numbers, one missing": infer({"shape": [40, 16, 20, 3], "data": [0] * (40 * 960 - 1)}),
        "v2: many numbers and a text": infer(
            {"shape": [40, 16, 20, 3], "data": [0] * (40 * 960 - 1) + ["0"]}
        ),
        "v2: lists of different lengths": infer(
            {"shape": [40, 16, 20, 3], "data": [[0] * 20_000, [0] * 18_400]}
        ),
        "v2: many numbers as the shape": infer({"shape": [0] * 40_000, "data": []}),
        "v2: an output ten times": infer({"data": [0] * 960}, outputs=[{"name": "labels"}] * 10),
        "a path with nulls": http_request(b"", method="GET", path="/%00%ff%2e"),
    }


def heavy(size: int) -> dict[str, bytes]:
    """Makes requests of about `size` bytes that are the most expensive to parse, for every content type."""
    part = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
    noise, end, files = random.Random(0).randbytes(size), b"\r\n--x--\r\n", "/v2/models/linear/infer"
    binary = {"name": "files", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": size}}
    tensor = b'{"inputs":[{"name":"images","datatype":"FP32","shape":[%d,16,20,3],"data":['
    return {
        "JSON of empty texts": as_json(b'{"images":[' + b'"",' * (size // 3) + b'""]}'),
        "JSON of escaped quotes": as_json(b'{"image":"' + b'\\"' * (size // 2) + b'"}'),
        "JSON of escaped letters": as_json(b'{"image":"' + b"\\u0041" * (size // 6) + b'"}'),
        "JSON, nested": as_json(b'{"images":' + b"[" * size),
        "JSON of objects": as_json(b'{"images":[' + b"{}," * (size // 3) + b"{}]}"),
        "JSON of numbers": as_json(b'{"images":[' + b"0," * (size // 2) + b"0]}"),
        "JSON of one number": as_json(b'{"top_k":' + b"9" * size + b"}"),
        "JSON of base64": as_json({"image": base64.b64encode(noise[: 3 * size // 4]).decode()}),
        "a form of headers": multipart(b"--x\r\n" + b"a:b\r\n" * (size // 5)),
        "a form of almost ends": multipart(part + b"\r\n--" * (size // 4) + end),
        "a form of line ends": multipart(part + b"\r" * size + end),
        "a form of one file": multipart(part + noise + end),
        "v2: empty files": infer(binary, bytes(size)),
        "v2: lists of one number": as_json(tensor % 1 + b"[0]," * (size // 4) + b"[0]]}]}", files),
        "v2: numbers": as_json(tensor % 64 + b",".join([b"%d" % 10**17] * (64 * 960)) + b"]}]}", files),
        "v2: texts": as_json(b'{"inputs":[' + b'"",' * (size // 3) + b'""]}', files),
        "a form of a page": http_request(b"a=b&" * (size // 4), "application/x-www-form-urlencoded"),
        "noise": http_request(noise, "application/octet-stream"),
        "noise to be viewed": http_request(noise, path="/view"),
        "chunks of empty lines": chunked(b"\r\n" * (size // 2)),
    }


def chunked(body: bytes, coding: str = "chunked") -> bytes:
    """Makes a request whose body is one chunk, with the given transfer coding."""
    head = f"POST /predict HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: {coding}\r\n\r\n"
    chunk = b"%x\r\n" % len(body) + body + b"\r\n" if body else b""
    return head.encode() + chunk + b"0\r\n\r\n"


def upgrading(body: bytes, protocol: str = "h2c") -> bytes:
    """Makes a request with an Upgrade to another protocol, as Java's client and `curl --http2` send."""
    return http_request(body, Connection="Upgrade, HTTP2-Settings", Upgrade=protocol, HTTP2_Settings="AAMA")


def seeds(routes: list[tuple[str, str]]) -> list[bytes]:
    """Makes well-formed requests for every route and every form of a body, to be damaged."""
    plain = [http_request(PNG, path=path, method=method) for method, path in routes]
    tensor = infer({"datatype": "UINT8", "parameters": {"binary_data_size": 960}}, bytes(960))
    framed = [
        upgrading(PNG),
        chunked(PNG),
        upgrading(b"") + chunked(PNG),
        http_request(b"", method="HEAD", path="/"),
    ]
    bodies = [multipart(form(PNG, top_k="2")[0]), as_json({"image": "aaaa", "top_k": 1}), tensor]
    return [*plain, *framed, *bodies]


def damage(data: bytes, generator: random.Random) -> bytes:
    """Changes, deletes, repeats, inserts or copies a few bytes."""
    damaged = bytearray(data)
    for _ in range(generator.randint(1, 6)):
        position = generator.randrange(len(damaged) or 1)
        match generator.randrange(5):
            case 0:
                damaged[position : position + 1] = generator.randbytes(1)
            case 1:
                del damaged[position : position + generator.randint(1, 40)]
            case 2:
                damaged[position:position] = damaged[position : position + 30] * generator.randint(1, 50)
            case 3:
                damaged[position:position] = generator.choice(
                    [b"\r\n", b"\0", b"%", b"\xff", b"9" * 400, b"\r\n\r\n"]
                )
            case 4:
                other = generator.randrange(len(damaged) or 1)
                damaged[position:position] = damaged[other : other + 60]
    return bytes(damaged)
