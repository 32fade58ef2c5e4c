"""Drives a headless Chromium like a user: drops, pastes and chooses files, and presses keys."""

import base64
import contextlib
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from selenium.webdriver import ActionChains, Chrome, ChromeOptions, Keys
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

OPTIONS = (
    "--headless=new",
    "--no-sandbox",  # Chromium's sandbox does not start for root, as in a container
    "--disable-dev-shm-usage",
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
    "--force-color-profile=srgb",
)
PATIENCE = 20  # seconds


@contextlib.contextmanager
def chromium(*options: str, width: int = 1200, height: int = 900) -> Iterator["Browser"]:
    """Starts a browser. Fails, rather than skips the test, if Chromium or its driver is not installed."""
    programs = {name: shutil.which(name) for name in ("chromium", "chromedriver")}
    missing = [name for name, path in programs.items() if path is None]
    assert not missing, f"{' and '.join(missing)} not found: apt-get install chromium chromium-driver"
    settings = ChromeOptions()
    settings.binary_location = programs["chromium"]
    for option in (*OPTIONS, *options, f"--window-size={width},{height}"):
        settings.add_argument(option)
    settings.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = Chrome(settings, Service(programs["chromedriver"]))
    try:
        yield Browser(driver)
    finally:
        driver.quit()


class Browser:
    def __init__(self, driver: Chrome):
        self.driver = driver

    def open(self, port: int) -> None:
        self.driver.get(f"http://127.0.0.1:{port}/")

    def run(self, script: str, *arguments: Any) -> Any:
        """Runs a script in the page; `await` is allowed."""
        wrapped = (
            "const done = arguments[arguments.length - 1];"
            f"(async (...arguments) => {{ {script} }})(...arguments).then(done, (e) => done(`failed: ${{e}}`));"
        )
        return self.driver.execute_async_script(wrapped, *arguments)

    def find(self, selector: str) -> WebElement:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def all(self, selector: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def text(self, selector: str) -> str:
        return self.find(selector).text

    def wait(self, condition: Callable[[], Any], what: str) -> Any:
        deadline = time.monotonic() + PATIENCE
        while not (value := condition()):
            assert time.monotonic() < deadline, f"{what} never came; the page says: {self.text('body')}"
            time.sleep(0.03)
        return value

    def wait_for_answers(self, count: int) -> list[WebElement]:
        """Waits until the history has `count` pictures and none waits for its answer."""
        self.wait(
            lambda: len(self.all("#history > li")) == count and not self.all("#history > [aria-busy]"),
            f"{count} answers",
        )
        return self.all("#history > li")

    def pick(self, *files: Path) -> None:
        self.find("#files").send_keys("\n".join(str(file) for file in files))

    def drop(self, *files: Path) -> None:
        """Drags files onto the page, with the events that a desktop sends."""
        data = {"items": [], "files": [str(file) for file in files], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            event = {"type": kind, "x": 300, "y": 200, "data": data}
            self.driver.execute_cdp_cmd("Input.dispatchDragEvent", event)

    def paste(self, png: bytes) -> None:
        """Pastes a picture from the clipboard with the keyboard."""
        origin = self.run("return location.origin")
        grant = {"origin": origin, "permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"]}
        self.driver.execute_cdp_cmd("Browser.grantPermissions", grant)
        error = self.run(
            "const bytes = Uint8Array.from(atob(arguments[0]), (c) => c.charCodeAt(0));"
            "const blob = new Blob([bytes], {type: 'image/png'});"
            "await navigator.clipboard.write([new ClipboardItem({'image/png': blob})]);",
            base64.b64encode(png).decode(),
        )
        assert error is None, error
        ActionChains(self.driver).key_down(Keys.CONTROL).send_keys("v").key_up(Keys.CONTROL).perform()

    def press(self, keys: str) -> None:
        # Not sent to the active element: a file input would read the keys as names of files.
        ActionChains(self.driver).send_keys(keys).perform()

    def errors(self) -> list[str]:
        """Returns the errors on the console since the last call, including violations of the policy."""
        return [row["message"] for row in self.driver.get_log("browser") if row["level"] == "SEVERE"]
