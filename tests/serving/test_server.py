"""Tests `visionpipe serve` over real sockets: its answers, its refusals and its shutdown."""

import asyncio
import base64
import contextlib
import io
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from attacks import end_under_load
from PIL import Image
from servers import CHECKOUT, CLASSES, SIZE, artifact_folder, big_jpeg, form, picture, running

from visionpipe.artifact.versions import version_in
from visionpipe.commands.options import parser, settings
from visionpipe.data.decode import decode_image
from visionpipe.data.frame import frame
from visionpipe.errors import ConfigError
from visionpipe.serving.app import prediction, write_answer
from visionpipe.serving.bodies import Question, Refusal
from visionpipe.serving.guard import Guard
from visionpipe.serving.metrics import Metrics
from visionpipe.serving.server import listen
from visionpipe.serving.service import Service
from visionpipe.serving.settings import Settings, complete

PICTURES = {
    "png": picture("PNG"),
    "jpeg": picture("JPEG", width=64, height=48),
    "grey": picture("JPEG", "L", 48, 64),
    "transparent": picture("PNG", "RGBA", 24, 24),
    "small": picture("PNG", width=5, height=9),
}
JSON = {"content_type": "application/json"}


def expected(classifier, data):
    return classifier.probabilities(classifier.preprocess(data)[None])[0]


def encoded(data):
    return base64.b64encode(data).decode()


# Answers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PICTURES)
def test_an_image_as_the_body_gets_the_classifiers_answer(server, classifier, name):
    answer = server.predict(PICTURES[name])
    probabilities = expected(classifier, PICTURES[name])
    (prediction,) = answer.json["predictions"]
    assert answer.status == 200
    assert prediction["label"] == CLASSES[probabilities.argmax()]
    assert prediction["probability"] == pytest.approx(probabilities.max(), abs=1e-6)
    for label, value in zip(CLASSES, probabilities, strict=True):
        assert prediction["probabilities"][label] == pytest.approx(value, abs=1e-6)
    assert list(prediction["probabilities"].values()) == sorted(
        prediction["probabilities"].values(), reverse=True
    )
    assert set(answer.json["milliseconds"]) == {"decode", "wait", "run", "total"}


def test_forms_and_json_give_the_same_answers_in_the_order_asked(server):
    alone = [server.predict(data).json["predictions"][0] for data in PICTURES.values()]
    body, content_type = form(*PICTURES.values())
    from_form = server.predict(body, content_type=content_type).json["predictions"]
    content = json.dumps({"images": [encoded(data) for data in PICTURES.values()]})
    from_json = server.predict(content, **JSON).json["predictions"]
    one = server.predict(json.dumps({"image": encoded(PICTURES["png"])}), **JSON).json["predictions"]
    assert [p["label"] for p in from_form] == [p["label"] for p in from_json] == [p["label"] for p in alone]
    assert len({p["label"] for p in alone}) > 1
    assert one[0]["label"] == alone[0]["label"]


@pytest.mark.parametrize("way", ["query", "form", "json"])
def test_top_k_and_unsure_below_in_every_way_of_asking(server, way):
    data = PICTURES["jpeg"]
    best = server.predict(data).json["predictions"][0]["probability"]
    for threshold, unsure in ((best + 0.01, True), (best - 0.01, False)):
        if way == "query":
            answer = server.predict(data, f"?top_k=2&unsure_below={threshold}")
        elif way == "form":
            body, content_type = form(data, top_k="2", unsure_below=str(threshold))
            answer = server.predict(body, content_type=content_type)
        else:
            content = {"image": encoded(data), "top_k": 2, "unsure_below": threshold}
            answer = server.predict(json.dumps(content), **JSON)
        (prediction,) = answer.json["predictions"]
        assert len(prediction["probabilities"]) == 2
        assert prediction["unsure"] is unsure


def test_a_bad_image_among_good_ones_fails_alone(server):
    body, content_type = form(PICTURES["png"], PICTURES["png"][:90], b"text", PICTURES["jpeg"])
    answer = server.predict(body, content_type=content_type)
    assert answer.status == 200
    codes = [p.get("error", {}).get("code") for p in answer.json["predictions"]]
    assert codes == [None, "broken", "unsupported", None]


def test_many_clients_at_once_get_their_own_answers_from_batches(server, classifier):
    images = [picture(width=8 + i) for i in range(60)]
    with ThreadPoolExecutor(24) as clients:
        answers = list(clients.map(server.predict, images * 3))
    for data, answer in zip(images * 3, answers, strict=True):
        (prediction,) = answer.json["predictions"]
        assert prediction["probability"] == pytest.approx(expected(classifier, data).max(), abs=1e-6)
    text = server.get("/metrics").body.decode()
    runs = float(re.search(r"^visionpipe_batch_images_count (\S+)", text, re.MULTILINE)[1])
    inside = float(re.search(r"^visionpipe_batch_images_sum (\S+)", text, re.MULTILINE)[1])
    assert inside > runs  # some runs held several
    assert server.metric("visionpipe_batch_seconds_count") == runs
    assert 0 < server.metric("visionpipe_batch_seconds_sum") < 60
    assert server.metric("visionpipe_queue_images") == 0


@pytest.mark.parametrize("name", PICTURES)
def test_the_view_of_an_image_is_what_the_model_gets(server, classifier, name):
    answer = server.request("POST", "/view", PICTURES[name])
    assert (answer.status, answer.headers["content-type"]) == (200, "image/png")
    np.testing.assert_array_equal(decode_image(answer.body), classifier.preprocess(PICTURES[name]))


def test_the_view_follows_the_artifacts_interpolation_and_crop(tmp_path):
    folder = artifact_folder(tmp_path / "framed")
    framing = {"size": SIZE, "interpolation": "bilinear", "crop_ratio": 0.5}
    (folder / "preprocessing.json").write_text(json.dumps(framing))
    with running(folder) as server:
        view = decode_image(server.request("POST", "/view", PICTURES["jpeg"]).body)
        model = server.get("/model").json
    np.testing.assert_array_equal(view, frame(decode_image(PICTURES["jpeg"]), **framing))
    assert (model["interpolation"], model["crop_ratio"]) == ("bilinear", 0.5)


def test_a_view_is_refused_like_an_answer_and_leaves_nothing_in_the_queue(artifact):
    with running(artifact, "--max-body", "9000", "--request-seconds", "0.05") as server:
        for body, status, code in (
            (b"no image", 415, "unsupported"),
            (PICTURES["jpeg"][:300], 422, "broken"),
            (b"x" * 9001, 413, "too_large"),
        ):
            answer = server.request("POST", "/view", body)
            assert (answer.status, answer.json["code"]) == (status, code)
        assert server.metric("visionpipe_queue_images") == 0
    with running(artifact, "--request-seconds", "0.02") as server:
        answer = server.request("POST", "/view", big_jpeg())
        assert (answer.status, answer.json["code"]) == (504, "timeout")
        time.sleep(2)  # the decoding that was started ends
        assert server.metric("visionpipe_queue_images") == 0


def test_the_model_route_describes_the_live_version(server, artifact):
    model = server.get("/model").json
    assert model["name"] == "linear"
    assert model["classes"] == CLASSES
    assert model["size"] == {"height": 16, "width": 20}
    assert model["max_images"] == 64
    assert model["version"] == server.predict(PICTURES["png"]).json["model"]["version"]
    assert model["lineage"]["artifact_sha256"].startswith(model["version"])


def test_metrics_count_requests_labels_and_bad_images(server):
    label = server.predict(PICTURES["png"]).json["predictions"][0]["label"]
    version = server.get("/model").json["version"]
    lines = [
        'visionpipe_requests_total{route="/predict",status="200"}',
        'visionpipe_requests_total{route="/predict",status="415"}',
        f'visionpipe_predictions_total{{label="{label}",version="{version}"}}',
        'visionpipe_bad_images_total{code="unsupported"}',
    ]
    before = [server.metric(line) for line in lines]
    server.predict(PICTURES["png"])
    server.predict(b"no image")
    assert [server.metric(line) for line in lines] == [value + 1 for value in before]
    assert server.metric(f'visionpipe_model_version{{name="linear",version="{version}"}}') == 1


def test_the_openapi_document_names_every_route_and_no_other_host(server):
    document = server.get("/openapi.json")
    paths = document.json["paths"]
    assert {
        "/predict",
        "/view",
        "/healthz",
        "/readyz",
        "/metrics",
        "/model",
        "/v2/models/{name}/infer",
    } <= set(paths)
    kinds = paths["/predict"]["post"]["requestBody"]["content"]
    assert set(kinds) == {"image/*", "multipart/form-data", "application/json"}
    assert b"http" not in document.body.replace(b"https://github.com/kserve", b"")


def test_the_process_imports_no_framework_and_is_ready_within_two_seconds(artifact):
    """Lists the modules of the serving process after it has answered."""
    script = f"""
import sys
from visionpipe.cli import main
main(["serve", {str(artifact)!r}, "--port", "0", "--drain-seconds", "0"])
print(sorted(set(sys.modules) & {{"keras", "tensorflow", "jax", "torch", "mlflow", "pandas", "onnx"}}))
"""
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-c", script], cwd=CHECKOUT, stdout=subprocess.PIPE, text=True
    )
    line = process.stdout.readline()
    seconds = time.perf_counter() - start
    port = re.search(r":(\d+)/", line)[1]
    request = [
        sys.executable,
        "-c",
        "import sys, urllib.request as u; u.urlopen(sys.argv[1], sys.stdin.buffer.read())",
    ]
    subprocess.run([*request, f"http://127.0.0.1:{port}/predict"], input=PICTURES["png"], check=True)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    assert output.strip() == "[]"
    assert seconds < 4  # 1 to 2 on an idle machine; benchmarks/serving/compare.py measures it


# Refusals ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "content_type", "status", "code"),
    [
        (b"", "", 415, "unsupported"),
        (b"only text", "image/png", 415, "unsupported"),
        (b"<svg/>", "image/svg+xml", 415, "unsupported"),
        (PICTURES["jpeg"][:300], "image/jpeg", 422, "broken"),
        (b"{", "application/json", 400, "invalid_request"),
        (b"[]", "application/json", 400, "invalid_request"),
        (b"{}", "application/json", 400, "invalid_request"),
        (b'{"image": 5}', "application/json", 400, "invalid_request"),
        (b'{"image": "!"}', "application/json", 400, "invalid_request"),
        (b'{"images": "aaaa"}', "application/json", 400, "invalid_request"),
        (b'{"image": "aaaa", "top_k": NaN}', "application/json", 400, "invalid_request"),
        (b'{"image": "aaaa", "top_k": ' + b"9" * 5000 + b"}", "application/json", 400, "invalid_request"),
        (b'{"image": "aaaa", "top_k": 0}', "application/json", 400, "invalid_request"),
        (b'{"image": "aaaa", "unsure_below": true}', "application/json", 400, "invalid_request"),
        (b'{"image": "aaaa", "url": "http://x"}', "application/json", 400, "invalid_request"),
        (b"[" * 100_000, "application/json", 400, "invalid_request"),
        (b"\xff\xfe", "application/json", 400, "invalid_request"),
        (b"--x\r\n", "multipart/form-data; boundary=x", 400, "invalid_request"),
        (b"--x--\r\n", "multipart/form-data; boundary=x", 400, "invalid_request"),
        (b"nothing", "multipart/form-data", 400, "invalid_request"),
        (form(b"a")[0][:-9], "multipart/form-data; boundary=x", 400, "invalid_request"),
        (form(b"a", top_k="two")[0], "multipart/form-data; boundary=x", 400, "invalid_request"),
        (form(*[b"a"] * 65)[0], "multipart/form-data; boundary=x", 413, "too_large"),
    ],
)
def test_a_bad_request_is_refused_in_one_sentence(server, body, content_type, status, code):
    answer = server.predict(body, content_type=content_type)
    assert (answer.status, answer.json["code"]) == (status, code)
    assert set(answer.json) == {"code", "reason", "request_id"}
    assert answer.json["request_id"] == answer.headers["x-request-id"]
    assert len(answer.json["reason"]) < 120
    assert "Traceback" not in answer.json["reason"]


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nothing", 404, "not_found"),
        ("GET", "/predict", 405, "method_not_allowed"),
        ("POST", "/predict?top_k=x", 400, "invalid_request"),
        ("POST", "/predict?unsure_below=nan", 400, "invalid_request"),
        ("GET", "/docs", 404, "not_found"),
        ("GET", "/v2/models/other", 404, "not_found"),
    ],
)
def test_a_wrong_address_or_method_is_refused_in_the_same_form(server, method, path, status, code):
    answer = server.request(method, path, PICTURES["png"] if method == "POST" else None)
    assert (answer.status, answer.json["code"]) == (status, code)


def test_a_clients_request_id_is_used_if_it_is_harmless(server):
    assert server.predict(b"", x_request_id="order-66").json["request_id"] == "order-66"
    assert server.predict(b"", x_request_id='"><b>').json["request_id"] != '"><b>'


def test_an_exception_is_an_internal_error_without_a_traceback(artifact, tmp_path):
    """The model fails on all-white images only: their darkest pixel, 255, is not an index of a table of 255."""
    import onnx
    from onnx import helper

    folder = artifact_folder(tmp_path / "fragile")
    model = onnx.load(folder / "model.onnx")
    graph = model.graph
    graph.node.insert(0, helper.make_node("ReduceMin", ["images"], ["darkest"], keepdims=0))
    graph.node.insert(1, helper.make_node("Cast", ["darkest"], ["whole"], to=7))
    graph.node.insert(2, helper.make_node("Gather", ["table", "whole"], ["zero"]))
    graph.node.insert(3, helper.make_node("Add", ["images", "zero"], ["checked"]))
    graph.initializer.append(onnx.numpy_helper.from_array(np.zeros(255, np.float32), "table"))
    graph.node[4].input[0] = "checked"
    onnx.save(model, folder / "model.onnx")
    dark, white = picture_of(100), picture_of(255)
    with running(folder) as server:
        assert server.predict(dark).status == 200
        answer = server.predict(white)
        assert (answer.status, answer.json["code"]) == (500, "internal")
        assert "Gather" not in answer.body.decode()
        assert server.predict(dark).status == 200
        server.stop()
    assert answer.json["request_id"] in "".join(server.log)


def picture_of(level):
    import io

    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", (20, 16), (level,) * 3).save(file, "PNG")
    return file.getvalue()


# Limits ------------------------------------------------------------------------------------------------


def raw(port, data, wait=5.0):
    """Sends bytes; returns the bytes that come back until the server closes, and the seconds until then."""
    start = time.perf_counter()
    with socket.create_connection(("127.0.0.1", port), timeout=wait) as client:
        client.sendall(data)
        received = b""
        while chunk := client.recv(65536):
            received += chunk
    return received, time.perf_counter() - start


def test_a_body_beyond_the_limit_is_refused_by_its_announcement_and_by_its_length(artifact):
    with running(artifact, "--max-body", "5000") as server:
        assert server.predict(b"x" * 5001).status == 413
        assert server.predict(b"x" * 5000).status == 415
        chunks = (b"x" * 1000 for _ in range(6))
        connection_refused = server.request("POST", "/predict", chunks)
        assert (connection_refused.status, connection_refused.json["code"]) == (413, "too_large")
        head = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 9000000000\r\n\r\n"
        with socket.create_connection(("127.0.0.1", server.port), timeout=5) as client:
            client.sendall(head)  # answered before the body is sent
            assert client.recv(100).startswith(b"HTTP/1.1 413 ")


def test_an_endless_body_is_cut_off(artifact):
    with running(artifact, "--max-body", "100000") as server:
        head = b"POST /predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        sent = 0
        with socket.create_connection(("127.0.0.1", server.port), timeout=5) as client:
            client.sendall(head)
            with contextlib.suppress(OSError):
                while sent < 100_000_000:
                    client.sendall(b"2710\r\n" + b"x" * 10_000 + b"\r\n")
                    sent += 10_000
        assert sent < 20_000_000


def test_slow_headers_and_bodies_are_closed_with_408_and_endless_headers_with_431(artifact):
    with running(artifact, "--header-seconds", "0.5", "--body-seconds", "1") as server:
        received, seconds = raw(server.port, b"POST /predict HTTP/1.1\r\nHo")
        assert received.startswith(b"HTTP/1.1 408 ")
        assert 0.4 < seconds < 2
        received, seconds = raw(
            server.port, b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nabc"
        )
        assert received.startswith(b"HTTP/1.1 408 ")
        assert 0.9 < seconds < 3
        assert json.loads(received.split(b"\r\n\r\n")[1])["code"] == "timeout"
        received, seconds = raw(server.port, b"")
        assert received == b""
        assert seconds < 2
        received, _ = raw(server.port, b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 2_000_000)
        assert received.startswith(b"HTTP/1.1 431 ")
        received, _ = raw(server.port, b"complete nonsense\r\n\r\n")
        assert received.startswith(b"HTTP/1.1 400 ")
        assert json.loads(received.split(b"\r\n\r\n")[1])["code"] == "invalid_request"
        # The deadlines do not apply between the requests of a client on one connection.
        with socket.create_connection(("127.0.0.1", server.port), timeout=5) as client:
            for _ in range(3):
                client.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
                time.sleep(0.6)
                assert client.recv(1000).startswith(b"HTTP/1.1 200 ")


def test_a_full_queue_refuses_with_retry_after_and_recovers(artifact):
    data = big_jpeg()
    with running(artifact, "--max-queue", "2", "--decoders", "1") as server:
        with ThreadPoolExecutor(8) as clients:
            answers = list(clients.map(server.predict, [data] * 8))
        by_status = {answer.status: answer for answer in answers}
        assert set(by_status) == {200, 503}
        assert by_status[503].json["code"] == "overloaded"
        assert int(by_status[503].headers["retry-after"]) >= 1
        assert server.predict(PICTURES["png"]).status == 200


def test_images_that_would_wait_too_long_are_refused_before_the_queue_is_full():
    service = Service(Settings(max_queue=100, request_seconds=10))
    service.queue.waiting, service.queue.seconds_per_image = 50, 0.09
    service.make_room(1)
    service.queue.seconds_per_image = 0.11  # the waiting images take 5.5 seconds
    with pytest.raises(Refusal) as refused:
        service.make_room(1)
    assert refused.value.status == 503
    assert refused.value.headers["Retry-After"] == "6"
    service.queue.pool.shutdown()


def test_a_request_that_takes_too_long_is_answered_with_504(artifact):
    with running(artifact, "--request-seconds", "0.02") as server:
        answer = server.predict(big_jpeg())
        assert (answer.status, answer.json["code"]) == (504, "timeout")
        time.sleep(2)  # the decoding that was started ends
        assert server.metric("visionpipe_queue_images") == 0


# The token, the end, the options -----------------------------------------------------------------------


def test_with_a_token_only_health_is_open(artifact):
    with running(artifact, VISIONPIPE_TOKEN="sésame") as server:
        for path in ("/model", "/metrics", "/openapi.json", "/v2", "/nothing"):
            refused = server.get(path)
            assert (refused.status, refused.json["code"]) == (401, "unauthorized")
            assert refused.headers["www-authenticate"] == "Bearer"
        assert server.predict(PICTURES["png"], authorization="Bearer wrong").status == 401
        token = "Bearer sésame".encode().decode("latin-1")
        assert server.predict(PICTURES["png"], authorization=token).status == 200
        assert server.get("/healthz").status == server.get("/readyz").status == 200
        assert server.get("/v2/health/ready").status == 200
        server.stop()
    assert "sésame" not in server.first_line + "".join(server.log)


def test_neither_a_token_nor_a_wrong_one_is_logged(artifact):
    with running(artifact, VISIONPIPE_TOKEN="open-sesame") as server:
        assert server.predict(PICTURES["png"], authorization="Bearer open-barley").status == 401
        assert server.predict(b"x", authorization="Bearer open-sesame").status == 415
        server.stop()
    assert "open-" not in server.first_line + "".join(server.log)


def test_a_browser_may_ask_for_permission_without_the_token_and_read_a_refusal(artifact):
    origin = "https://example.org"
    asking = {"origin": origin, "access_control_request_method": "POST"}
    with running(artifact, "--cors-origin", origin, VISIONPIPE_TOKEN="open-sesame") as server:
        asked = server.request(
            "OPTIONS", "/predict", **asking, access_control_request_headers="authorization"
        )
        assert asked.status == 200
        assert asked.headers["access-control-allow-origin"] == origin
        assert "authorization" in asked.headers["access-control-allow-headers"]
        refused = server.predict(PICTURES["png"], origin=origin)
        assert (refused.status, refused.headers["access-control-allow-origin"]) == (401, origin)


def test_the_limit_of_pixels_is_a_setting(artifact):
    width, height = Image.open(io.BytesIO(PICTURES["png"])).size
    with running(artifact, "--max-pixels", str(width * height - 1)) as server:
        refused = server.predict(PICTURES["png"])
        assert (refused.status, refused.json["code"]) == (413, "too_large")
        assert server.request("POST", "/view", PICTURES["png"]).status == 413


def test_under_load_each_core_runs_separate_batches_and_the_answers_are_the_same(artifact, classifier):
    service = Service(Settings(threads=2, max_batch=8))
    service.serve(version_in(artifact))
    live = service.present()
    images = [picture(width=width) for width in range(10, 74)]
    wanted = np.array([expected(classifier, image) for image in images])
    half = 'visionpipe_batch_images_bucket{le="4.0"} '
    for _ in range(5):  # the model with one thread is loaded during the first iterations
        before = float(re.search(re.escape(half) + r"(\S+)", service.metrics.text().decode())[1])
        jobs = asyncio.run(service.answer(live, images))
        np.testing.assert_allclose([job.future.result() for job in jobs], wanted, atol=1e-6)
        after = float(re.search(re.escape(half) + r"(\S+)", service.metrics.text().decode())[1])
    assert after - before >= 12  # of 16 batches of four images; with all cores it would be 8 batches of eight
    service.queue.pool.shutdown()


def test_cors_is_off_unless_an_origin_is_named(artifact, server):
    origin = "https://example.org"
    assert "access-control-allow-origin" not in server.predict(PICTURES["png"], origin=origin).headers
    with running(artifact, "--cors-origin", origin) as open_server:
        headers = open_server.predict(PICTURES["png"], origin=origin).headers
        assert headers["access-control-allow-origin"] == origin
        other = open_server.predict(PICTURES["png"], origin="https://example.com").headers
        assert "access-control-allow-origin" not in other


def test_sigterm_answers_running_requests_and_ends_in_time_despite_a_stalled_client(artifact):
    with running(artifact, "--drain-seconds", "0.5", "--shutdown-seconds", "2") as server:
        stalled = socket.create_connection(("127.0.0.1", server.port), timeout=30)
        stalled.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 900\r\n\r\nabc")
        answers = []
        client = threading.Thread(target=lambda: answers.append(server.predict(big_jpeg())))
        client.start()
        time.sleep(0.2)
        start = time.perf_counter()
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.1)
        ready = server.get("/readyz")
        assert (ready.status, ready.json["code"]) == (503, "draining")
        assert server.get("/healthz").headers["connection"] == "close"
        code = server.process.wait(30)
        assert time.perf_counter() - start < 8
        client.join(30)
        stalled.close()
    assert code == 0
    assert answers[0].status == 200


def test_sigterm_under_load_loses_no_request(artifact):
    result = end_under_load(artifact)
    assert result["lost"] == []
    assert result["answered"] > 100
    assert result["exit code"] == 0


@pytest.mark.parametrize("path", ["/", "/healthz", "/readyz", "/v2/health/ready", "/model", "/openapi.json"])
def test_head_is_get_without_the_body(server, path):
    whole, head = server.get(path), server.request("HEAD", path)
    assert (head.status, head.body) == (200, b"")
    assert head.headers["content-length"] == str(len(whole.body))
    assert server.request("HEAD", "/predict").status == 405


@pytest.mark.parametrize("scheme", [b"Bearer ", b"bearer ", b"BEARER  "])
def test_the_tokens_scheme_may_have_any_case_and_its_letters_both_encodings(scheme):
    guard = Guard(lambda *_: None, Service(Settings(token="sésame")))
    for token in ("sésame".encode(), "sésame".encode("latin-1")):
        assert guard.allowed("/model", scheme + token)
        assert not guard.allowed("/model", scheme + token + b"s")
        assert not guard.allowed("/model", b"Basic " + token)
        assert not guard.allowed("/model", token)


@pytest.mark.parametrize(
    ("given", "token"),
    [(None, None), ("secret\n", "secret"), (" secret\r\n", "secret"), ("open sesame", "open sesame")],
)
def test_white_space_around_a_token_is_stripped(given, token):
    variables = {} if given is None else {"VISIONPIPE_TOKEN": given}
    assert complete(Settings(), variables).token == token


@pytest.mark.parametrize(
    "given",
    [
        "",
        "\n",
        "'secret'",
        '"secret"',
        "Bearer secret",
        "Bearer ",
        "bearer",
        " BEARER\t",
        "one\ntwo",
        "\ufeffsecret",
    ],
)
def test_a_token_that_no_client_would_send_is_refused_at_the_start(given):
    with pytest.raises(ConfigError, match="VISIONPIPE_TOKEN") as refused:
        complete(Settings(), {"VISIONPIPE_TOKEN": given})
    assert "secret" not in str(refused.value).replace("give it a secret", "")


@pytest.mark.parametrize(
    ("given", "origin"),
    [
        ("https://example.org/", "https://example.org"),
        ("HTTPS://Example.org:443", "https://example.org"),
        ("http://[0:0::1]:3000", "http://[::1]:3000"),
        ("https://münchen.example", "https://xn--mnchen-3ya.example"),
        ("chrome-extension://abc", "chrome-extension://abc"),
        ("*", "*"),
        ("null", "null"),
    ],
)
def test_an_origin_is_read_as_browsers_write_it(given, origin):
    assert complete(Settings(cors_origin=(given,)), {}).cors_origin == (origin,)


@pytest.mark.parametrize(
    "changes",
    [
        *(
            {"cors_origin": (text,)}
            for text in ("example.org", "localhost:3000", "https://a.org/x", "", "//a.org")
        ),
        *(
            {"cors_origin": (text,)}
            for text in ("https://a.org,https://b.org", "https://*.org", "https://a.org:99999")
        ),
        *({"host": text} for text in ("", " ", "[]")),
        *(
            {"port": 70_000},
            {"port": -1},
            {"max_images": 0},
            {"body_seconds": float("nan")},
            {"max_body": -5},
        ),
    ],
)
def test_an_impossible_setting_is_refused_at_the_start(changes):
    with pytest.raises(ConfigError, match=next(iter(changes)).replace("_", "-")):
        complete(Settings(**changes), {})


@pytest.mark.parametrize("host", ["127.0.0.1", " 127.0.0.1 ", "localhost", "[::1]", "::1", "::"])
def test_a_host_is_an_ipv4_or_ipv6_address_with_or_without_brackets(host):
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    if family == socket.AF_INET6 and not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    with listen(complete(Settings(host=host, port=0), {})) as listening:
        assert listening.family == family
        address = "::1" if family == socket.AF_INET6 else "127.0.0.1"
        socket.create_connection((address, listening.getsockname()[1]), timeout=5).close()


@pytest.mark.parametrize("host", ["256.0.0.1", "a" * 80, "..", "1.2.3.4:80", "http://127.0.0.1"])
def test_an_invalid_host_is_one_clear_error(host):
    with pytest.raises(ConfigError, match="choose another --host or --port"):
        listen(complete(Settings(host=host, port=0), {}))


def test_the_answer_for_many_classes_is_the_same_although_it_is_written_image_by_image(tmp_path):
    from onnx_models import write_artifact

    labels = [f"class {number}" for number in range(3000)]
    weights = np.random.default_rng(0).normal(0, 0.002, (SIZE[0] * SIZE[1] * 3, len(labels)))
    service = Service(Settings(threads=1))
    service.serve(version_in(write_artifact(tmp_path / "many", labels, SIZE, weights)))
    live, question = service.present(), Question(several=True)
    jobs = asyncio.run(service.answer(live, [picture(width=width) for width in range(10, 18)]))
    assert live.is_large(jobs)
    assert not live.is_large(jobs[:1])
    written = json.loads(write_answer(jobs, live, question, 0.0))
    classifier = live.batcher.classifier
    for job, entry in zip(jobs, written["predictions"], strict=True):
        assert entry == prediction(job, classifier, question)
        assert list(entry["probabilities"].values()) == sorted(job.future.result(), reverse=True)
    question.top_k = 5
    assert len(prediction(jobs[0], classifier, question)["probabilities"]) == 5
    service.queue.pool.shutdown()


def test_the_model_route_answers_304_until_another_version_is_live(server):
    first = server.get("/model")
    again = server.get("/model", if_none_match=first.headers["etag"])
    assert (again.status, again.body) == (304, b"")
    assert server.get("/model", if_none_match='"another"').body == first.body


def test_metrics_have_the_predictions_of_the_last_two_versions_only():
    metrics = Metrics()
    for number in ("1", "2", "1", "3"):
        metrics.now_serving("m", number)
        metrics.predictions.labels("cat", number).inc()
    text = metrics.text().decode()
    assert 'visionpipe_predictions_total{label="cat",version="1"} 2.0' in text
    assert 'version="2"' not in text
    assert 'visionpipe_model_version{name="m",version="3"} 1.0' in text


def test_every_setting_is_an_option_with_its_default():
    assert settings(parser().parse_args(["serve"])) == Settings()
    options = ["serve", "x", "--max-queue", "7", "--cors-origin", "a", "--cors-origin", "b", "--threads", "3"]
    assert settings(parser().parse_args(options)) == Settings(max_queue=7, cors_origin=("a", "b"), threads=3)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("nowhere", "neither a folder nor an address"),
        (".", "has no model.onnx"),
        ("models:/x@y", "there is no tracking store"),
        ("models:/x", "expected models:/NAME@ALIAS"),
    ],
)
def test_a_target_that_cannot_be_served_is_one_line(tmp_path, target, message):
    command = [sys.executable, "-m", "visionpipe", "serve", target, "--port", "0"]
    result = subprocess.run(
        command, cwd=tmp_path, env={"PYTHONPATH": str(CHECKOUT), "PATH": ""}, capture_output=True, text=True
    )
    assert result.returncode == 1
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_port_in_use_is_one_line(artifact, server):
    command = [sys.executable, "-m", "visionpipe", "serve", str(artifact), "--port", str(server.port)]
    result = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True)
    assert result.returncode == 1
    assert "choose another --host or --port" in result.stderr
