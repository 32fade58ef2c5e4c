"""Tests that hostile requests are refused soon and in one sentence, without effects on other clients."""

import json
import subprocess
import sys
import time

import pytest
from attacks import (
    beside,
    converse,
    end_under_load,
    fuzz,
    open_files_and_threads,
    pipeline,
    schemathesis,
    send,
    send_too_much,
    slow_clients,
    status_of,
)
from hostile_requests import PNG, chunked, heavy, http_request, malformed, upgrading
from repository import CHECKOUT
from servers import running

MALFORMED = malformed()
ALIVE = http_request(b"", method="GET", path="/healthz", Connection="keep-alive")
ASKED = http_request(PNG, Connection="keep-alive")
TWO = chunked(b"ab").replace(b"Connection: close\r\n", b"") + ALIVE
EXPECTING = http_request(PNG, Expect="100-continue")


@pytest.fixture(scope="module", autouse=True)
def no_exception_is_left_unheard(server):
    """Checks that the server logged nothing: every exception was reported to its client."""
    yield
    server.stop()
    assert server.log == []


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_request_is_refused_in_the_common_form(server, name):
    answer = send(server.port, MALFORMED[name])
    assert status_of(answer) // 100 == 4
    content = json.loads(answer.split(b"\r\n\r\n", 1)[1])
    assert set(content) == {"code", "reason", "request_id"}
    assert "Traceback" not in content["reason"]
    assert server.predict(PNG).status == 200


def test_damaged_requests_to_every_route_never_cause_an_internal_error(server):
    result = fuzz(server, 400, seed=int(time.time()) % 1000)
    assert all(status < 500 for status in result["statuses"]), result
    assert result["statuses"][200] > 50  # some requests are damaged so little that they are answered
    assert result["statuses"][400] > 20


def test_a_body_beyond_the_limit_takes_no_memory(server):
    result = send_too_much(server, mebibytes=200)
    assert result["taken MiB"] < 50  # twice the limit of 20, and the buffers of the sockets
    assert result["extra memory MiB"] < 30


def test_files_and_threads_stay_as_many_as_they_were(server):
    fuzz(server, 100)  # opens every file that stays open, and starts all threads of the pools
    for _ in range(20):
        server.get("/metrics")
    before = settled(server)
    for request in [*MALFORMED.values()] * 2:
        send(server.port, request, patience=0.1)
    fuzz(server, 200, seed=1)
    for _ in range(200):
        server.predict(PNG)
    files, threads = settled(server)
    assert files <= before[0]
    assert threads <= before[1]


def settled(server):
    """The numbers once they have not changed for a second, as closed connections take a moment."""
    last, since = open_files_and_threads(server), time.monotonic()
    while time.monotonic() - since < 1:
        time.sleep(0.1)
        if (now := open_files_and_threads(server)) != last:
            last, since = now, time.monotonic()
    return last


def test_slow_clients_are_closed_and_good_ones_answered_beside_them(artifact):
    with running(artifact, "--header-seconds", "1.5", "--body-seconds", "3") as server:
        result = slow_clients(server.port, count=30, quiet_seconds=1, clients=2)
    assert result["headers closed after, at most"] < 3
    assert result["bodies closed after, at most"] < 4.5
    assert result["good requests"] > 100  # each of them a 200: the client asserts it


@pytest.mark.rare
def test_two_hundred_slow_clients_of_each_kind_hardly_slow_good_ones_down(artifact):
    """With the limits that the server has by default."""
    with running(artifact) as server:
        result = slow_clients(server.port, count=200, quiet_seconds=10)
    assert result["headers closed after, at most"] < 10 + 1
    assert result["bodies closed after, at most"] < 30 + 1
    assert result["p99 ms, beside them"] <= 2 * result["p99 ms, alone"]


@pytest.mark.rare
def test_twenty_ends_under_load_lose_no_request(artifact):
    results = [end_under_load(artifact) for _ in range(20)]
    assert [result["lost"] for result in results] == [[]] * 20
    assert [result["exit code"] for result in results] == [0] * 20


@pytest.mark.parametrize("cases", [300, pytest.param(10_000, marks=pytest.mark.rare)])
def test_requests_made_from_the_openapi_document_find_no_error_of_the_server(artifact, tmp_path, cases):
    with running(artifact) as server:
        generated, failures = schemathesis(server, cases, tmp_path)
        server.stop()
    assert failures == []
    assert generated >= cases
    assert server.log == []


@pytest.mark.parametrize(
    ("parts", "half", "statuses"),
    [
        ([upgrading(PNG)], False, [200]),
        ([upgrading(PNG)[: -len(PNG)], PNG], False, [200]),
        ([upgrading(PNG) + ALIVE], False, [200, 200]),
        ([upgrading(PNG, "websocket")], False, [200]),
        ([chunked(PNG, "chunked\r\nConnection: Upgrade\r\nUpgrade: websocket")], False, [200]),
        ([ASKED + ALIVE + http_request(b"x", Connection="keep-alive") + ALIVE], False, [200, 200, 415, 200]),
        ([ASKED + b"no HTTP\r\n\r\n"], False, [200, 400]),
        ([http_request(PNG) + ALIVE], False, [200]),
        ([ASKED], True, [200]),
        ([ASKED + ALIVE * 3], True, [200] * 4),
        ([ASKED[:-5]], True, [400]),
        ([b"GET /hea"], True, [400]),
        ([b""], True, []),
        ([TWO[i : i + 1] for i in range(len(TWO))], False, [415, 200]),
        ([chunked(b"\r\n\r\n" * 10_000).replace(b"close", b"keep-alive") + ALIVE], False, [415, 200]),
        ([b"\r\n\r\n" + ALIVE], False, [200]),
        ([b"GET /healthz HTTP/1.0\r\nConnection: keep-alive\r\n\r\n" + ALIVE], False, [200]),
        ([b"GET http://example.org/healthz HTTP/1.1\r\nHost: x\r\n\r\n" + ALIVE], False, [200, 200]),
        ([b"GET http://example.org HTTP/1.1\r\nHost: x\r\n\r\n" + ALIVE], False, [200, 200]),
        ([b"HEAD / HTTP/1.1\r\nHost: x\r\n\r\n" + ALIVE], False, [200, 200]),
        ([EXPECTING[: -len(PNG)], PNG], False, [100, 200]),
        ([http_request(b"", Expect="100-continue", Content_Length="90000000"), ALIVE], False, [413]),
        ([http_request(bytes(21 * 2**20), Connection="keep-alive") + ALIVE], False, [413, 200]),
    ],
)
def test_each_request_has_one_answer_however_it_is_framed(server, parts, half, statuses):
    assert converse(server.port, parts, half, patience=0.2) == statuses


def test_pipelined_requests_are_answered_in_order_and_each_with_its_own_answer(server):
    names = [f"request-{number}" for number in range(40)]
    requests = [
        http_request(PNG if number % 2 else b"", Connection="keep-alive", X_Request_ID=name)
        for number, name in enumerate(names)
    ]
    answers = send(server.port, b"".join(requests), patience=0.5).split(b"HTTP/1.1 ")[1:]
    assert [answer[:3] for answer in answers] == [b"415", b"200"] * 20
    assert all(name.encode() in answer for name, answer in zip(names, answers, strict=True))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_pipelined_requests_pile_up_nowhere(server):
    result = pipeline(server, connections=20, seconds=1)
    assert result["extra memory MiB"] < 50
    assert result["slowest ms"] < 1000


def test_large_bodies_of_every_kind_do_not_delay_other_requests(server):
    """If 19 MiB were parsed at once, other requests would wait for 2 to 7 s (benchmarks/robustness/battery.py)."""
    for name, result in beside(server, heavy(8 * 2**20)).items():
        assert result["status"] // 100 == 4 or name == "v2: numbers", name
        assert result["slowest ms"] < 500, name


@pytest.mark.parametrize("name", ["a gzipped image", "a gzipped view", "chunks of gzip"])
def test_the_refusal_of_an_encoded_body_names_the_encoding(server, name):
    answer = send(server.port, MALFORMED[name])
    assert status_of(answer) == 415
    assert b"gzip" in answer
    assert b"accept-encoding: identity" in answer


def test_bandit_reports_nothing_that_is_not_explained():
    command = [
        sys.executable,
        "-m",
        "bandit",
        "--quiet",
        "--configfile",
        "pyproject.toml",
        "-r",
        "visionpipe",
    ]
    result = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout
