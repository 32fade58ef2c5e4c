"""Tests the Open Inference Protocol with Triton's client and with handwritten requests."""

import json
import struct
from types import SimpleNamespace

import numpy as np
import pytest
import tritonclient.http as http
from servers import CLASSES, SIZE, picture
from tritonclient.utils import InferenceServerException

from visionpipe.serving.bodies import Refusal
from visionpipe.serving.numbers import DIGITS, nesting, read_numbers
from visionpipe.serving.protocol_v2 import read_request


@pytest.fixture
def client(server):
    client = http.InferenceServerClient(f"127.0.0.1:{server.port}")
    yield client
    client.close()


IMAGES = np.random.default_rng(0).integers(0, 256, (5, *SIZE, 3), np.uint8)
FILES = [picture(width=9 + index) for index in range(4)]


def tensor(name, values, datatype, binary=True):
    result = http.InferInput(name, list(values.shape), datatype)
    result.set_data_from_numpy(values, binary_data=binary)
    return result


def test_triton_finds_server_and_model_ready_and_described(client, server):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("linear")
    assert client.get_server_metadata()["name"] == "visionpipe"
    metadata = client.get_model_metadata("linear")
    assert metadata["versions"] == [server.get("/model").json["version"]]
    assert metadata["inputs"][0] == {"name": "images", "datatype": "FP32", "shape": [-1, *SIZE, 3]}
    assert metadata["outputs"][0]["shape"] == [-1, len(CLASSES)]
    assert client.is_model_ready("linear", metadata["versions"][0])
    assert not client.is_model_ready("linear", "77")
    assert not client.is_model_ready("other")


@pytest.mark.parametrize("binary_out", [True, False])
@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize(("datatype", "dtype"), [("FP32", np.float32), ("UINT8", np.uint8)])
def test_triton_sends_tensors_and_gets_the_classifiers_answers(
    client, classifier, datatype, dtype, binary_in, binary_out
):
    asked = [http.InferRequestedOutput(name, binary_out) for name in ("labels", "probabilities")]
    values = IMAGES.astype(dtype)
    result = client.infer(
        "linear", [tensor("images", values, datatype, binary_in)], outputs=asked, request_id="7"
    )
    expected = classifier.probabilities(IMAGES)
    np.testing.assert_allclose(result.as_numpy("probabilities"), expected, atol=1e-6)
    labels = [label.decode() if binary_out else label for label in result.as_numpy("labels").tolist()]
    assert labels == [CLASSES[index] for index in expected.argmax(axis=1)]
    assert result.get_response()["id"] == "7"


def test_triton_sends_image_files(client, classifier):
    files = np.array(FILES, dtype=np.object_)
    result = client.infer("linear", [tensor("files", files, "BYTES")])
    pixels = np.stack([classifier.preprocess(file) for file in FILES])
    np.testing.assert_allclose(result.as_numpy("probabilities"), classifier.probabilities(pixels), atol=1e-6)


def test_a_bad_file_fails_the_tensor_that_it_is_in(client):
    files = np.array([FILES[0], b"text"], dtype=np.object_)
    with pytest.raises(InferenceServerException, match="not an image"):
        client.infer("linear", [tensor("files", files, "BYTES")])


def ask(server, inputs=None, body=None, binary=b"", length=None, **more):
    header = json.dumps({"inputs": inputs, **more}).encode() if body is None else body
    headers = {} if length is None else {"inference_header_content_length": str(length)}
    if binary:
        headers = {"inference_header_content_length": str(len(header))}
    return server.request("POST", "/v2/models/linear/infer", header + binary, **headers)


def images(**changes):
    return [{"name": "images", "datatype": "UINT8", "shape": [1, *SIZE, 3], "data": [0] * 960} | changes]


def sized(size, **changes):
    (tensor,) = images(parameters={"binary_data_size": size}, **changes)
    del tensor["data"]
    return [tensor]


def files(**changes):
    return [{"name": "files", "datatype": "BYTES", "shape": [1]} | changes]


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        ({"body": b"{"}, 400),
        ({"body": b"[]"}, 400),
        ({"inputs": None}, 400),
        ({"inputs": []}, 400),
        ({"inputs": images() * 2}, 400),
        ({"inputs": images(name="pixels")}, 400),
        ({"inputs": images(datatype="FP64")}, 400),
        ({"inputs": images(shape=[0, *SIZE, 3])}, 400),
        ({"inputs": images(shape=[-1, *SIZE, 3])}, 400),
        ({"inputs": images(shape=[1, 8, 8, 3])}, 400),
        ({"inputs": images(shape=[10**30, *SIZE, 3])}, 400),
        ({"inputs": images(shape=[10**9, *SIZE, 3])}, 413),
        ({"inputs": images(shape=["1", *SIZE, 3])}, 400),
        ({"inputs": images(data=[0] * 5)}, 400),
        ({"inputs": images(data=["a"] * 960)}, 400),
        ({"inputs": images(data=[300] * 960)}, 400),
        ({"inputs": images(data=[[0], [0, 1]])}, 400),
        ({"inputs": images(data=None)}, 400),
        ({"inputs": images(parameters=5)}, 400),
        ({"inputs": images(), "outputs": [{"name": "logits"}]}, 400),
        ({"inputs": images(), "outputs": 5}, 400),
        ({"inputs": images(), "length": 10**6}, 400),
        ({"inputs": images(), "length": "x"}, 400),
        ({"inputs": sized(960), "binary": b"x" * 959}, 400),
        ({"inputs": sized(959), "binary": b"x" * 959}, 400),
        ({"inputs": sized(3840, datatype="FP32"), "binary": struct.pack("<f", float("nan")) * 960}, 400),
        ({"inputs": files(parameters={"binary_data_size": 3}), "binary": b"\1\0\0"}, 400),
        ({"inputs": files(parameters={"binary_data_size": 5}), "binary": b"\xff\xff\xff\xff1"}, 400),
        ({"inputs": files(parameters={"binary_data_size": 8}), "binary": b"\0" * 8}, 400),
        ({"inputs": files(parameters={"binary_data_size": 4}), "binary": b"\0" * 4}, 415),
        ({"inputs": files(data=["!"])}, 400),
        ({"inputs": files(shape=[65])}, 413),
    ],
)
def test_a_malformed_request_is_refused_in_one_sentence(server, request_, status):
    answer = ask(server, **request_)
    assert answer.status == status
    assert set(answer.json) == {"code", "reason", "request_id"}


def test_a_request_made_by_hand_answers_json_with_the_version(server):
    answer = ask(server, images())
    assert answer.status == 200
    assert answer.json["model_version"] == server.get("/model").json["version"]
    assert [output["name"] for output in answer.json["outputs"]] == ["probabilities", "labels"]


@pytest.mark.parametrize("shape", [(-1,), (64, *SIZE, 3)])
@pytest.mark.parametrize("last", ["data", "name"])
def test_a_large_tensor_in_json_nested_or_not_is_the_one_in_binary(server, shape, last):
    values = np.random.default_rng(1).integers(0, 256, (64, *SIZE, 3), np.uint8)
    (tensor,) = images(shape=list(values.shape), data=values.reshape(shape).tolist())
    tensor[last] = tensor.pop(last)  # a key after the numbers is read too
    wanted = {"outputs": [{"name": "probabilities"}]}
    plain = ask(server, [tensor], id="7", **wanted)
    binary = ask(server, sized(values.size, shape=list(values.shape)), binary=values.tobytes(), **wanted)
    assert plain.json["id"] == "7"
    assert plain.json["outputs"] == binary.json["outputs"]


@pytest.mark.parametrize("shape", [[1], [3], [1, 1], [2, 3], [3, 1, 2], [2, 2, 2, 3]])
def test_the_brackets_of_a_shape_are_those_of_an_array(shape):
    text = json.dumps(np.ones(shape).tolist()).encode()
    assert text.translate(None, DIGITS) == nesting(shape)


@pytest.mark.parametrize(
    ("text", "dtype"),
    [
        *(
            (text, "<f4")
            for text in (b"[1,2,]", b"[,1,2]", b"[1][2]", b"[1],[2]", b"[[1],2]", b"[1 2]", b"[1,2]]")
        ),
        *(
            (text, "<f4")
            for text in (b"[1]", b"[1,2,3]", b"[]", b"[[],[]]", b'[1,"2"]x', b"[1,1e999]", b"[1,nan]")
        ),
        *((text, "u1") for text in (b"[1,300]", b"[1,-1]", b"[1,null]")),
    ],
)
def test_two_numbers_are_two_numbers_in_a_list(text, dtype):
    np.testing.assert_array_equal(read_numbers(b"[ 1 ,\n2 ]", np.dtype(dtype), [2]), [1, 2])
    with pytest.raises(Refusal):
        read_numbers(text, np.dtype(dtype), [2])


@pytest.mark.parametrize("count", [1, 64], ids=["short", "long"])
@pytest.mark.parametrize(
    ("datatype", "value", "reason"),
    [
        *(("UINT8", value, "not an integer in [0, 255]") for value in (1.5, 300, -1, 1e39, 2**70)),
        *(("FP32", value, "too large for FP32") for value in (1e39, -1e39, 2**200)),
        *((datatype, True, "holds true") for datatype in ("UINT8", "FP32")),
        *((datatype, False, "holds false") for datatype in ("UINT8", "FP32")),
        *((datatype, None, "holds null") for datatype in ("UINT8", "FP32")),
        *((datatype, {}, "holds an object") for datatype in ("UINT8", "FP32")),
        *((datatype, "1", "holds a string") for datatype in ("UINT8", "FP32")),
    ],
)
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.filterwarnings("error")
def test_a_value_that_is_not_of_the_tensors_type_is_named(classifier, datatype, value, reason, count, nested):
    values = np.zeros((count, *SIZE, 3), object)
    values[count // 2, 1, 1, 1] = value
    data = values.tolist() if nested else values.ravel().tolist()
    (tensor,) = images(datatype=datatype, shape=list(values.shape), data=data)
    body = json.dumps({"inputs": [tensor]}).encode()
    with pytest.raises(Refusal) as refused:
        read_request(body, None, live(classifier), 64)
    assert refused.value.status == 400
    if count == 1 or value not in ({}, "1"):
        assert reason in refused.value.reason
    else:  # only lists of numbers are cut out
        assert "more than 65536 bytes of JSON outside its strings" in refused.value.reason


@pytest.mark.parametrize("count", [1, 64], ids=["short", "long"])
@pytest.mark.parametrize("sides", [(SIZE[1], SIZE[0], 3), (-1,), (3, *SIZE), (1, *SIZE, 3)])
def test_data_nested_differently_from_the_shape_is_refused(classifier, count, sides):
    data = np.zeros((count, *sides) if -1 not in sides else (count, SIZE[0] * SIZE[1] * 3), int).tolist()
    body = json.dumps({"inputs": images(shape=[count, *SIZE, 3], data=data)}).encode()
    with pytest.raises(Refusal, match="must be one flat list, or lists nested like shape"):
        read_request(body, None, live(classifier), 64)


@pytest.mark.parametrize(
    ("datatype", "value"), [("UINT8", 255), ("UINT8", 2.0), ("FP32", 3.4028235e38), ("FP32", 0.1)]
)
def test_the_ends_of_a_type_are_read(datatype, value, classifier):
    body = json.dumps({"inputs": images(datatype=datatype, data=[value] * 960)}).encode()
    _, (pixels,) = read_request(body, None, live(classifier), 64)
    assert (pixels == np.float32(value)).all()


def live(classifier):
    return SimpleNamespace(batcher=SimpleNamespace(classifier=classifier))
