"""Tests the page in headless Chromium: make test-browser."""

import itertools
import json
import shlex
import socket
import subprocess

import numpy as np
import pytest
from chromium import chromium
from linear_models import make_params, set_alias, write_model
from onnx_models import COLOURS, write_artifact, write_colours
from PIL import Image
from repository import pattern
from selenium.webdriver import Keys
from servers import CLASSES, SIZE, picture, running

from visionpipe.artifact.classifier import Classifier
from visionpipe.stages.register import register
from visionpipe.tracking.store import connect

pytestmark = [
    pytest.mark.browser,
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]  # selenium's sockets


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


@pytest.fixture
def page(browser, server):
    """Opens the page. A test must read all errors on the console, or it fails."""
    browser.open(server.port)
    browser.wait(lambda: browser.text("#model"), "the model")
    browser.errors()
    yield browser
    assert browser.errors() == []


@pytest.fixture
def files(tmp_path):
    """Writes pictures; returns name → path."""
    contents = {
        "photo.jpg": picture("JPEG", width=300, height=200),
        'it\'s "a" $(name) & more.png': picture(width=24, height=30),
        "grey.png": picture("PNG", "L", 48, 64),
        "half.png": picture()[:90],
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    return {name: tmp_path / name for name in contents}


def bars(answer):
    rows = [bar.text.split("\n") for bar in answer.find_elements("css selector", ".bars li")]
    return dict(rows)


def spoken(browser):
    return browser.run("return [...document.querySelector('#spoken').children].map((p) => p.textContent)")


def percent(share):
    return f"{share:.1%}"


# Questions ---------------------------------------------------------------------------------------------


def test_dropped_files_are_answered_with_the_servers_probabilities_as_bars(page, server, files):
    good = [path for name, path in files.items() if name != "half.png"]
    page.drop(*good)
    for answer, path in zip(page.wait_for_answers(3), good, strict=True):
        (said,) = server.predict(path.read_bytes(), "?top_k=5&unsure_below=0.5").json["predictions"]
        assert bars(answer) == {name: percent(share) for name, share in said["probabilities"].items()}
        assert answer.find_element("css selector", ".label").text == said["label"]
        assert answer.find_element("css selector", ".unsure").is_displayed() is said["unsure"]
        for bar, share in zip(
            answer.find_elements("css selector", ".bar"), said["probabilities"].values(), strict=True
        ):
            drawn = page.run("return parseFloat(getComputedStyle(arguments[0], '::before').width)", bar)
            assert drawn == pytest.approx(share * bar.size["width"], abs=1)


def test_a_picture_is_pasted_with_the_keyboard(page, server):
    data = picture(width=77)
    page.paste(data)
    (answer,) = page.wait_for_answers(1)
    label = server.predict(data).json["predictions"][0]["label"]
    assert answer.find_element("css selector", ".label").text == label


def test_the_camera_takes_a_picture(page):
    page.find("#open-camera").click()
    shoot = page.find("#camera .shoot")
    page.wait(shoot.is_enabled, "a picture from the camera")
    shoot.click()
    (answer,) = page.wait_for_answers(1)
    assert answer.find_element("css selector", ".file").text == "camera-1.jpg"
    assert len(bars(answer)) == 5
    assert not page.find("#camera").is_displayed()
    assert page.run("return document.querySelector('video').srcObject") is None  # the camera is off


def test_a_bad_file_among_good_ones_fails_alone_and_says_why(page, files):
    page.pick(*files.values())
    answers = page.wait_for_answers(4)
    reasons = [answer.find_element("css selector", ".problem").text for answer in answers]
    assert reasons == ["", "", "", "a PNG that is cut off"]
    assert not answers[3].find_element("css selector", ".again").is_displayed()  # it would fail again
    assert ["422" in line for line in page.errors()] == [True]  # Chromium logs the status


def test_a_drop_without_a_picture_shows_a_message_and_sends_nothing(page):
    event = "new DragEvent('drop', {dataTransfer: new DataTransfer(), bubbles: true, cancelable: true})"
    page.run(f"document.dispatchEvent({event})")
    assert "Links are not followed" in page.text("#remark")
    assert page.all("#history > li") == []


def test_a_file_beyond_the_limit_is_refused_before_it_is_sent(browser, artifact, files):
    with running(artifact, "--max-body", "2000") as server:
        browser.open(server.port)
        browser.wait(lambda: browser.text("#model"), "the model")
        browser.pick(files["photo.jpg"])
        (answer,) = browser.wait_for_answers(1)
        assert "larger than" in answer.find_element("css selector", ".problem").text
        assert server.metric('visionpipe_requests_total{route="/predict",status="413"}') == 0
    browser.errors()


def test_below_the_threshold_an_answer_is_unsure(page, files):
    threshold = page.find("#threshold")
    for value, unsure in (("100", True), ("0", False)):
        threshold.clear()
        threshold.send_keys(value)
        page.pick(files["photo.jpg"])
        answer = page.wait_for_answers(1 if unsure else 2)[0]
        assert answer.find_element("css selector", ".unsure").is_displayed() is unsure


def test_the_history_keeps_earlier_answers_closed_until_it_is_cleared(page, files):
    page.pick(files["photo.jpg"])
    page.wait_for_answers(1)
    page.pick(files["grey.png"])
    newest, older = page.wait_for_answers(2)
    names = [answer.find_element("css selector", ".file").text for answer in (newest, older)]
    assert names == ["grey.png", "photo.jpg"]
    states = [
        answer.find_element("css selector", "details").get_attribute("open") for answer in (newest, older)
    ]
    assert states == ["true", None]
    older.find_element("css selector", "summary").click()
    assert len(bars(older)) == 5
    page.find("#clear").click()
    assert page.all("#history > li") == []
    assert page.find("#nothing").is_displayed()


def test_the_curl_command_sends_the_same_request(page, files):
    name = next(name for name in files if "$" in name)
    page.pick(files[name])
    (answer,) = page.wait_for_answers(1)
    answer.find_element("css selector", ".curl summary").click()
    command = answer.find_element("css selector", ".curl code").text
    assert f"@{name}" in shlex.split(command)
    output = subprocess.run(
        command, shell=True, cwd=files[name].parent, capture_output=True, check=True
    ).stdout
    (said,) = json.loads(output)["predictions"]
    assert bars(answer) == {label: percent(share) for label, share in said["probabilities"].items()}


# The server --------------------------------------------------------------------------------------------


def test_a_stopped_server_is_reported_and_asked_again_after_its_restart(browser, artifact, files):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with running(artifact, "--port", str(port)):
        browser.open(port)
        browser.wait(lambda: browser.text("#model"), "the model")
    browser.pick(files["photo.jpg"])
    (answer,) = browser.wait_for_answers(1)
    assert answer.find_element("css selector", ".problem").text == "The server does not answer."
    browser.wait(lambda: browser.text("#state") == "The server does not answer.", "the state")
    with running(artifact, "--port", str(port)):
        browser.wait(lambda: "version" in browser.text("#state"), "the state")
        answer.find_element("css selector", ".again").click()
        browser.wait_for_answers(1)
        assert len(bars(answer)) == 5
        assert not answer.find_element("css selector", ".problem").is_displayed()
    assert all("ERR_" in line for line in browser.errors())


def test_an_alias_that_moves_while_the_page_is_open_shows_without_a_reload(browser, in_workspace, tmp_path):
    params = make_params("page", ["one"])
    for mistaken in (2, 0):
        write_model("one", params, mistaken=mistaken)
        register(params)
    store = connect(params.tracking)
    set_alias(store, "champion", "1")
    Image.fromarray(pattern(2, np.random.default_rng(0))).save(tmp_path / "red.png")
    with running("models:/page@champion") as server:
        browser.open(server.port)
        browser.wait(lambda: "version 1" in browser.text("#state"), "version 1")
        shown = browser.text("#model")
        model = server.get("/model").json
        assert percent(model["metrics"]["test.accuracy"]) in shown
        assert "40 images of tiny.zip" in shown
        browser.pick(tmp_path / "red.png")
        browser.wait_for_answers(1)
        set_alias(store, "champion", "2")
        browser.wait(lambda: "version 2" in browser.text("#state"), "version 2")
        assert browser.text("#model") != shown
        assert spoken(browser)[-1] == "Version 2 answers now."
        browser.pick(tmp_path / "red.png")
        browser.wait_for_answers(2)
        versions = [when.text.split()[-1] for when in browser.all(".when")]
        assert versions == ["2", "1"]
    browser.errors()


def test_the_page_asks_for_the_token_and_uses_it(browser, artifact, files):
    with running(artifact, VISIONPIPE_TOKEN="sesame") as server:
        browser.open(server.port)
        browser.wait(lambda: browser.find("#token").is_displayed(), "the question for the token")
        browser.pick(files["photo.jpg"])
        (answer,) = browser.wait_for_answers(1)
        problem = answer.find_element("css selector", ".problem")
        assert problem.text == "this server requires a bearer token"
        for word in ("wrong", "sesame"):
            browser.find("#token-value").clear()
            browser.find("#token-value").send_keys(word + Keys.ENTER)
            browser.wait_for_answers(1)
            browser.wait(lambda w=word: browser.find("#token").is_displayed() is (w == "wrong"), "the form")
        browser.wait(lambda: len(bars(answer)) == 5, "the answer")
        assert "$VISIONPIPE_TOKEN" in browser.run("return document.querySelector('.curl code').textContent")
        assert "sesame" not in browser.driver.page_source
    browser.errors()


# Everybody ---------------------------------------------------------------------------------------------

CONTRAST = """
const luminance = ([r, g, b]) => [r, g, b].map((v) => v / 255)
  .map((v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
  .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
const colour = (text) => text.match(/[\\d.]+/g).map(Number);
const ground = (node) => {
  for (; node; node = node.parentElement) {
    const found = colour(getComputedStyle(node).backgroundColor);
    if (found.length === 3 || found[3] > 0) return found;
  }
  return matchMedia("(prefers-color-scheme: dark)").matches ? [18, 18, 18] : [255, 255, 255];
};
const low = [];
for (const node of document.querySelectorAll("body *")) {
  const own = [...node.childNodes].some((child) => child.nodeType === 3 && child.textContent.trim());
  if (!own || !node.checkVisibility() || node.closest(".unseen, .skip")) continue;
  const [a, b] = [colour(getComputedStyle(node).color), ground(node)].map(luminance).sort((x, y) => y - x);
  const ratio = (a + 0.05) / (b + 0.05);
  if (ratio < 4.5) low.push(`${node.tagName} ${node.textContent.trim()}: ${ratio.toFixed(2)}`);
}
return [low, getComputedStyle(document.body).backgroundColor];
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_the_contrast_that_wcag_asks_for_in_light_and_in_dark(page, files, scheme):
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    page.find("#threshold").clear()
    page.find("#threshold").send_keys("100")
    page.pick(files["photo.jpg"], files["half.png"])
    page.wait_for_answers(2)
    low, ground = page.run(CONTRAST)
    assert low == []
    red = int(ground.split("(")[1].split(",")[0])
    assert red < 60 if scheme == "dark" else red > 200
    page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    page.errors()


def test_a_phone_shows_everything_without_scrolling_sideways_and_with_targets_for_fingers(page, files):
    metrics = {"width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": True}
    page.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    page.pick(*list(files.values())[:3])
    page.wait_for_answers(3)
    for summary in page.all(".curl summary"):
        summary.click()
    assert page.run("return document.documentElement.scrollWidth") == 360
    for target in page.all("button, .button, .answer > summary"):
        if target.is_displayed():
            assert target.size["height"] >= 44, target.text
    page.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_the_keyboard_alone_reaches_and_works_everything(page, files):
    page.pick(files["photo.jpg"])
    page.wait_for_answers(1)
    page.run("document.activeElement.blur(); window.scrollTo(0, 0)")
    seen = []
    for _ in range(30):
        page.press(Keys.TAB)
        seen.append(
            page.run(
                "const e = document.activeElement;"
                "const ring = getComputedStyle(e.matches('input[type=file]') ? e.previousElementSibling : e);"
                "return [e.id || e.className || e.tagName, ring.outlineStyle]"
            )
        )
        if seen[-1][0] == "BODY":
            break
    reached = [name for name, _ in seen]
    expected = ["skip", "files", "open-camera", "threshold", "clear", "SUMMARY", "look", "SUMMARY", "SUMMARY"]
    assert [name for name in reached if name != "BODY"] == expected
    assert {ring for name, ring in seen if name != "BODY"} == {"solid"}  # the focus is visible
    page.run("document.querySelector('.look').focus()")
    page.press(Keys.ENTER)
    page.wait(lambda: page.all("figcaption:not([hidden])"), "the heat map")
    page.run("document.querySelector('.answer > summary').focus()")
    page.press(Keys.SPACE)
    assert page.find(".answer").get_attribute("open") is None


def test_a_screen_reader_hears_a_name_for_everything_and_each_answer(page, files):
    page.pick(files["photo.jpg"])
    page.wait_for_answers(1)
    page.find(".look").click()
    page.wait(lambda: page.all("figcaption:not([hidden])"), "the heat map")
    page.driver.execute_cdp_cmd("Accessibility.enable", {})
    nodes = page.driver.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    names = {}
    for node in nodes:
        if not node["ignored"]:
            names.setdefault(node["role"]["value"], []).append(node.get("name", {}).get("value", ""))
    for role in ("button", "DisclosureTriangle", "spinbutton", "region", "complementary", "image", "heading"):
        assert names[role], role
        assert all(names[role]), (role, names[role])
    label = page.text(".label")
    assert any(label in name and "photo.jpg" in name for name in names["DisclosureTriangle"])
    assert any(
        name.startswith("Heat map. The bright area, ") and f" counted for {label} (" in name
        for name in names["image"]
    )
    assert page.find("#spoken").get_attribute("aria-live") == "polite"


def test_of_several_answers_at_once_a_screen_reader_hears_each(page, files):
    page.pick(*files.values())
    page.wait_for_answers(4)
    assert {line.rsplit(": ", 1)[0] for line in spoken(page)} == set(files)
    page.errors()


def test_the_policy_stops_what_is_not_the_pages_own_and_names_are_only_text(page, tmp_path):
    evil = tmp_path / "<img src=x onerror=alert(1)>.png"
    evil.write_bytes(picture())
    page.pick(evil)
    (answer,) = page.wait_for_answers(1)
    assert answer.find_element("css selector", ".file").text == evil.name
    page.run(
        "window.ran = 0;"
        "const s = document.createElement('script');"
        "try { s.textContent = 'window.ran = 1' } catch { window.refused = 1 }"
        "document.head.append(s);"
        "const i = new Image(); i.src = 'http://127.0.0.2:1/x.png'; document.body.append(i);"
        "await new Promise((resolve) => setTimeout(resolve, 200))"
    )
    assert page.run("return window.ran") == 0
    assert page.run("return window.refused") == 1  # trusted types: a string never becomes a script
    assert any("Content Security Policy" in line and "127.0.0.2" in line for line in page.errors())
    origins = page.run(
        "return performance.getEntriesByType('resource').map((e) => new URL(e.name)).map((u) => u.origin)"
    )
    assert set(origins) <= {page.run("return location.origin"), "null", "http://127.0.0.2:1"}


# The heat map ------------------------------------------------------------------------------------------


VIEW = """
const {modelView} = await import('/page/view.js');
return [...(await modelView(new Blob([Uint8Array.from(arguments[0])]))).pixels];
"""


@pytest.mark.parametrize(
    "data",
    [
        picture(),
        picture("JPEG", width=300, height=200),
        picture("PNG", "RGBA", 24, 24),
        picture("JPEG", "CMYK", 97, 61),
        picture("TIFF", width=70, height=30),
        picture(width=700, height=3),
    ],
    ids=["png", "jpeg", "transparent", "cmyk", "tiff", "strip"],
)
def test_the_heat_map_explains_exactly_the_pixels_that_were_answered(page, artifact, data):
    np.testing.assert_array_equal(
        np.reshape(page.run(VIEW, list(data)), (*SIZE, 3)), Classifier(artifact).preprocess(data)
    )


def lit(page):
    """Returns the brightness that the heat map leaves each pixel, (height, width), [0, 255]."""
    values = page.run(
        "const c = document.querySelector('.picture canvas');"
        "const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;"
        "return [c.height, c.width, [...d].filter((_, i) => i % 4 === 3)]"
    )
    return 255 - np.reshape(values[2], values[:2])


@pytest.fixture(scope="module")
def colours(tmp_path_factory):
    """Writes a model whose answer is the share of red, green or blue in the picture, so its heat map is known."""
    return write_colours(tmp_path_factory.mktemp("artifacts") / "colours")


@pytest.mark.parametrize("way", ["left right", "top bottom"])
@pytest.mark.parametrize("strong", [0, 1], ids=["first half stronger", "second half stronger"])
def test_of_two_classes_in_one_picture_the_half_that_the_answer_names_is_lit(
    browser, colours, tmp_path, way, strong
):
    noise = np.random.default_rng(0)
    with running(colours) as server:
        browser.open(server.port)
        browser.wait(lambda: browser.text("#model"), "the model")
        for pair in itertools.permutations(range(len(COLOURS)), 2):
            image = noise.integers(40, 90, (224, 224, 3))
            for half, colour in enumerate(pair):
                image[half * 112 : half * 112 + 112, :, colour] += 120 if half == strong else 90
            pixels = image.astype(np.uint8) if way == "top bottom" else image.astype(np.uint8).swapaxes(0, 1)
            path = tmp_path / f"{pair}.png"
            Image.fromarray(np.ascontiguousarray(pixels)).save(path)
            browser.pick(path)
            (answer,) = browser.wait_for_answers(1)
            assert answer.find_element("css selector", ".label").text == COLOURS[pair[strong]]
            browser.find(".look").click()
            browser.wait(lambda: browser.all("figcaption:not([hidden])"), "the heat map")
            light = lit(browser) - lit(browser).min()
            light = light if way == "top bottom" else light.T
            named, rest = np.split(light, 2)
            if strong:
                named, rest = rest, named
            assert named.sum() > 0.9 * light.sum(), path.name
            assert light.max() == named.max() > 2 * rest.max(), path.name
            caption = browser.text("figcaption")
            assert f" counted for {COLOURS[pair[strong]]} (" in caption
            assert f"The bright area, towards the {way.split()[strong]}," in caption
            browser.find("#clear").click()


def test_the_heat_map_asks_in_batches_and_lies_over_what_the_model_saw(page, server, tmp_path):
    wide = tmp_path / "wide.png"
    wide.write_bytes(picture(width=400, height=100))
    page.pick(wide)
    page.wait_for_answers(1)
    line = 'visionpipe_requests_total{route="/v2/models/{name}/versions/{version}/infer",status="200"}'
    before = server.metric(line)
    page.find(".look").click()
    page.wait(lambda: page.all("figcaption:not([hidden])"), "the heat map")
    model = server.get("/model").json
    assert server.metric(line) - before == 1 + -(-144 // model["max_batch"])
    image, canvas = page.find(".picture img").rect, page.find(".picture canvas").rect
    shown = (
        100 * SIZE[1] / SIZE[0] / 400
    )  # share of the picture's width: the crop has the model's aspect ratio
    assert canvas["width"] == pytest.approx(image["width"] * shown, abs=1)
    assert canvas["height"] == pytest.approx(image["height"], abs=1)
    assert canvas["x"] + canvas["width"] / 2 == pytest.approx(image["x"] + image["width"] / 2, abs=1)


def test_the_heat_map_is_drawn_on_the_models_view_if_the_browser_cannot_show_the_picture(page, tmp_path):
    (tmp_path / "scan.tif").write_bytes(picture("TIFF", width=300, height=200))
    page.pick(tmp_path / "scan.tif")
    page.wait_for_answers(1)
    page.wait(lambda: page.all(".not-shown"), "the browser's refusal")
    assert not page.find(".picture").is_displayed()
    page.find(".look").click()
    page.wait(lambda: page.all("figcaption:not([hidden])"), "the heat map")
    image, canvas = page.find(".picture img"), page.find(".picture canvas")
    assert page.run("return [arguments[0].naturalHeight, arguments[0].naturalWidth]", image) == list(SIZE)
    assert canvas.is_displayed()
    assert canvas.rect == pytest.approx(image.rect, abs=1)


def test_large_models_cropped_views_and_small_limits_have_heat_maps_too(browser, tmp_path):
    size, ratio = (400, 400), 0.5
    folder = write_artifact(tmp_path / "large", CLASSES, size)
    (folder / "preprocessing.json").write_text(json.dumps({"size": size, "crop_ratio": ratio}))
    (tmp_path / "photo.png").write_bytes(picture(width=500, height=500))
    with running(folder, "--max-images", "5", "--max-body", "1500000") as server:
        browser.open(server.port)
        browser.wait(lambda: browser.text("#model"), "the model")
        browser.pick(tmp_path / "photo.png")
        browser.wait_for_answers(1)
        browser.find(".look").click()
        browser.wait(lambda: browser.all("figcaption:not([hidden])"), "the heat map")
        image, canvas = browser.find(".picture img").rect, browser.find(".picture canvas").rect
        assert canvas["width"] == pytest.approx(ratio * image["width"], abs=1)
        assert canvas["x"] == pytest.approx(image["x"] + image["width"] / 4, abs=1)
        assert not browser.find(".problem").is_displayed()
    browser.errors()


def test_the_heat_map_of_a_padded_picture_reaches_into_its_margins(browser, tmp_path):
    folder = write_artifact(tmp_path / "padded", CLASSES, (40, 40))
    (folder / "preprocessing.json").write_text(json.dumps({"size": [40, 40], "framing": "pad"}))
    (tmp_path / "photo.png").write_bytes(picture(width=500, height=250))
    with running(folder) as server:
        browser.open(server.port)
        browser.wait(lambda: browser.text("#model"), "the model")
        browser.pick(tmp_path / "photo.png")
        browser.wait_for_answers(1)
        browser.find(".look").click()
        browser.wait(lambda: browser.all("figcaption:not([hidden])"), "the heat map")
        image, canvas = browser.find(".picture img").rect, browser.find(".picture canvas").rect
        assert canvas["width"] == pytest.approx(image["width"], abs=1)
        assert canvas["height"] == pytest.approx(2 * image["height"], abs=2)
        assert canvas["y"] == pytest.approx(image["y"] - image["height"] / 2, abs=2)
    browser.errors()


def test_a_heat_map_can_be_hidden_and_asked_for_again(page, files):
    page.pick(files["photo.jpg"])
    page.wait_for_answers(1)
    for _ in range(2):
        assert page.text(".look") == "What did the model look at?"
        page.find(".look").click()
        page.wait(lambda: page.all("figcaption:not([hidden])"), "the heat map")
        assert page.text(".look") == "Hide the heat map"
        page.find(".look").click()
        assert not page.find(".picture canvas").is_displayed()


def test_an_answer_that_no_part_decides_is_not_given_a_heat_map(browser, tmp_path):
    blind = write_artifact(tmp_path / "blind", CLASSES, SIZE, np.zeros((SIZE[0] * SIZE[1] * 3, len(CLASSES))))
    (tmp_path / "photo.png").write_bytes(picture())
    with running(blind) as server:
        browser.open(server.port)
        browser.wait(lambda: browser.text("#model"), "the model")
        browser.pick(tmp_path / "photo.png")
        browser.wait_for_answers(1)
        browser.find(".look").click()
        browser.wait(lambda: browser.all("figcaption:not([hidden])"), "the remark")
        assert browser.text("figcaption").startswith("No single area counted for")
        assert lit(browser).max() < 255 * 0.3
    browser.errors()
