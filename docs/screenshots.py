"""The pictures of the page in the README, taken of a real server in a real Chromium.

    make repro                                    # the champion, trained on the sample
    python docs/screenshots.py                    # or another MODEL as for `visionpipe serve`
    apt-get install chromium chromium-driver      # what it needs beside the development packages

Writes docs/page.png (a desktop, light) and docs/page-phone.png (a phone, dark).
"""

import argparse
import io
import sys
import tempfile
import zipfile
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "shared"))

from chromium import Browser, chromium  # noqa: E402
from servers import RunningServer, running  # noqa: E402

SAMPLE = ROOT / "data" / "fashion-mini.zip"
PHONE = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}


def sample(label: str) -> list[bytes]:
    """The test images of one class."""
    with zipfile.ZipFile(SAMPLE) as archive:
        names = sorted(n for n in archive.namelist() if n.startswith(f"test/{label}/") and n.endswith(".png"))
        return [archive.read(name) for name in names]


def half_and_half(left: bytes, right: bytes) -> bytes:
    """The left half of one picture beside the right half of another, enlarged as a photo would be."""
    whole, other = (Image.open(io.BytesIO(data)).convert("RGB") for data in (left, right))
    middle = whole.width // 2
    whole.paste(other.crop((middle, 0, *other.size)), (middle, 0))
    file = io.BytesIO()
    whole.resize((280, 280), Image.Resampling.BICUBIC).save(file, "PNG")
    return file.getvalue()


def first_unsure(server: RunningServer, images: list[bytes]) -> bytes:
    unsure = (i for i in images if server.predict(i, "?unsure_below=0.5").json["predictions"][0]["unsure"])
    return next(unsure, images[0])


def ask(browser: Browser, path: Path, answers: int) -> None:
    browser.pick(path)
    browser.wait_for_answers(answers)


def show_heat(browser: Browser) -> None:
    browser.find(".look").click()
    browser.wait(lambda: browser.all(".answer figcaption:not([hidden])"), "the heat map")


def take(browser: Browser, path: Path) -> None:
    """A screenshot of what is in the window."""
    browser.run("document.activeElement.blur(); window.scrollTo(0, 0)")
    shot = Image.open(io.BytesIO(browser.driver.get_screenshot_as_png())).convert("RGB")
    shot.save(path, optimize=True)
    print(f"{path.relative_to(ROOT)}: {shot.width} × {shot.height}, {path.stat().st_size // 1024} KiB")


def emulate(browser: Browser, metrics: dict | None, scheme: str) -> None:
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    if metrics:
        browser.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", nargs="?", default="models:/visionpipe@champion")
    parser.add_argument("--output", type=Path, default=ROOT / "docs")
    arguments = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        running(arguments.model) as server,
        chromium(width=1100, height=1000) as browser,
    ):
        pictures = {
            "trouser.png": sample("trouser")[0],
            "shirt.png": first_unsure(server, sample("shirt")),
            "broken.png": sample("coat")[0][:200],
            "half bag, half boot.png": half_and_half(sample("bag")[0], sample("ankle-boot")[0]),
        }
        paths = {name: Path(folder, name) for name in pictures}
        for name, path in paths.items():
            path.write_bytes(pictures[name])
        for size, scheme, last, picture in (
            (None, "light", "half bag, half boot.png", "page.png"),
            (PHONE, "dark", "shirt.png", "page-phone.png"),
        ):
            emulate(browser, size, scheme)
            browser.open(server.port)
            browser.wait(lambda: browser.text("#model"), "the model")
            order = [path for name, path in paths.items() if name != last] + [paths[last]]
            for count, path in enumerate(order, 1):
                ask(browser, path, count)
            show_heat(browser)
            take(browser, arguments.output / picture)


if __name__ == "__main__":
    main()
