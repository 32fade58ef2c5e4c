"""Tests the page's files and headers. test_page_in_chromium.py tests the page in a browser."""

import re

import pytest
from servers import artifact_folder, running

from visionpipe.serving import page


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with running(
        artifact_folder(tmp_path_factory.mktemp("artifacts") / "linear"), VISIONPIPE_TOKEN="x"
    ) as server:
        yield server


@pytest.mark.parametrize("route", page.FILES)
def test_a_file_of_the_page_needs_no_token_and_has_the_strict_headers(server, route):
    answer = server.get(route)
    assert answer.status == 200
    assert answer.body == page.FILES[route].read_bytes()
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    assert "http" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_everything_that_the_page_asks_for_is_one_of_its_files():
    text = {route: path.read_text() for route, path in page.FILES.items()}
    asked = set(re.findall(r'(?:src|href)="(page/[^"]+)"', text["/"]))
    for content in text.values():
        asked |= {f"page/{name}" for name in re.findall(r'from "\./([^"]+)"', content)}
    assert {f"/{name}" for name in asked} | {"/"} == set(page.FILES)


@pytest.mark.parametrize("route", page.FILES)
def test_no_file_names_another_host_or_holds_script_or_style_inline(route):
    text = page.FILES[route].read_text()
    assert not re.search(r"https?:|//[a-z]", text.replace("http://www.w3.org/2000/svg", ""))
    assert "innerHTML" not in text
    if route == "/":
        assert not re.search(r"<style|<script(?! type=\"module\" src)|\son[a-z]+=|\sstyle=", text)


@pytest.mark.parametrize(
    "path",
    ["/page/", "/page/app.py", "/page/../app.py", "/page/%2e%2e/app.py", "/page/..%2fapp.py", "//etc/passwd"],
)
def test_no_other_file_can_be_asked_for(server, path):
    answer = server.get(path, authorization="Bearer x")
    assert (answer.status, answer.json["code"]) == (404, "not_found")
