"""The battery: every hostile file, through the decoder, the server and `prepare`."""

import base64
import json
import sys
from collections import Counter

import numpy as np
import pytest
from hostile import every_case
from hostile_requests import PNG
from hostile_sets import (
    ODD_NAMES,
    is_right,
    judge,
    measure_bombs,
    watched_prepare,
    write_folder,
    write_tar,
    write_zip,
)
from servers import form

from visionpipe.data.config import PrepareConfig
from visionpipe.data.decode import decode_image
from visionpipe.data.frame import frame
from visionpipe.data.sources import list_zip
from visionpipe.errors import DataError, ImageError
from visionpipe.serving.service import STATUS

CASES = every_case()
BOMBS = [case for case in CASES if case.kind == "bomb"]
MEGABYTES, SECONDS = 50, 0.1  # that a bomb may cost


@pytest.fixture(scope="module", autouse=True)
def no_exception_is_left_unheard(server):
    """The server logged nothing: no exception that a client did not hear of."""
    yield
    server.stop()
    assert server.log == []


def outcome(data):
    try:
        return decode_image(data)
    except ImageError as error:
        return error.code


def test_there_are_enough_kinds_and_each_file_is_another():
    kinds = Counter(case.kind for case in CASES)
    assert sum(kinds.values()) >= 48
    assert set(kinds) == {"not an image", "broken", "bomb", "odd"}
    assert len({case.file for case in CASES}) == len(CASES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.file)
def test_the_decoder_gives_the_exact_pixels_or_the_right_refusal(case):
    found = outcome(case.data)
    assert type(found) is type(case.expected)
    np.testing.assert_array_equal(found, case.expected)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.file)
def test_the_server_answers_with_the_right_status_or_of_the_right_pixels(server, classifier, case):
    answer = server.predict(case.data)
    if isinstance(case.expected, str):
        assert (answer.status, answer.json["code"]) == (STATUS[case.expected], case.expected)
        assert set(answer.json) == {"code", "reason", "request_id"}
    else:
        assert answer.status == 200
        assert is_right(answer.json["predictions"][0], case, classifier)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.file)
def test_its_view_shows_the_right_pixels_or_is_refused_with_the_same_code(server, classifier, case):
    answer = server.request("POST", "/view", case.data)
    if isinstance(case.expected, str):
        assert (answer.status, answer.json["code"]) == (STATUS[case.expected], case.expected)
    else:
        seen = frame(case.expected, classifier.size)
        np.testing.assert_array_equal(decode_image(answer.body), seen)


@pytest.mark.parametrize("way", ["form", "json"])
def test_all_of_them_together_are_answered_each_for_itself(server, classifier, way):
    for start in range(0, len(CASES), 40):
        cases = CASES[start : start + 40]
        if way == "form":
            body, content_type = form(*[case.data for case in cases])
        else:
            texts = [base64.b64encode(case.data).decode() for case in cases]
            body, content_type = json.dumps({"images": texts}), "application/json"
        answer = server.predict(body, content_type=content_type)
        assert answer.status == 200
        for entry, case in zip(answer.json["predictions"], cases, strict=True):
            assert is_right(entry, case, classifier), case.file


@pytest.mark.parametrize(
    "name", [*ODD_NAMES.values(), "../../escaped.png", "/etc/passwd", "a" * 255, ""], ids=ascii
)
def test_the_name_of_a_file_in_a_form_changes_nothing(server, name):
    quoted = name.replace("\n", "%0A").replace('"', "%22").encode()
    head = b'--x\r\nContent-Disposition: form-data; name="file"; filename="' + quoted + b'"\r\n\r\n'
    answer = server.predict(head + PNG + b"\r\n--x--\r\n", content_type="multipart/form-data; boundary=x")
    assert answer.json["predictions"] == server.predict(PNG).json["predictions"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_bomb_costs_little_memory_and_time():
    rows = measure_bombs()
    assert len(rows) == len(BOMBS)
    for name, _, seconds, mebibytes in rows:
        assert mebibytes <= MEGABYTES, name
        assert seconds <= SECONDS, name


@pytest.mark.parametrize(("source", "write"), [("folder", write_folder), ("zip", write_zip)])
def test_prepare_keeps_or_quarantines_every_file_and_touches_nothing_outside(tmp_path, source, write):
    work, outside = tmp_path / "work", tmp_path / "outside"
    (work / "data").mkdir(parents=True)
    path = work / "data" / "hostile"
    found = write(path, outside)
    result = watched_prepare(work, source, path)
    wrong = judge(result, found, work, outside)
    assert wrong == dict.fromkeys(wrong, 0)
    for name in ODD_NAMES.values():
        assert f"one/{name}" in result["pixels"]
    reasons = {row["path"]: row["reason"] for row in result["manifest"]["quarantined"]}
    links = [path for path, reason in reasons.items() if "link" in reason or "leads out" in reason]
    assert len(links) == (4 if source == "folder" else 6)


def test_a_tar_archive_is_no_source(tmp_path):
    write_tar(tmp_path / "slip.tar", tmp_path / "outside")
    with pytest.raises(DataError, match="is not a zip archive"):
        list_zip(PrepareConfig("zip", str(tmp_path / "slip.tar")))
    assert not (tmp_path / "outside").exists()
