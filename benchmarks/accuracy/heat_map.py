"""Measures how often the page's heat map marks the half of a picture that the answer names.

    make repro                                    # the champion, trained on the sample
    python -m benchmarks.accuracy.heat_map        # or another MODEL as for `visionpipe serve`; needs Chromium

For every ordered pair of classes it makes two pictures of half of one test image and half of another, side by side and
one above the other. The page's own code asks a real server. Where the answer is one of the two classes, the heat map is
right if most of its heat lies in that class's half. Half a picture is not always enough to recognise a class, so that
the result is given for all of these answers and for those with a probability of 0.8 or more. Results go to
benchmarks/accuracy/heat_map.json.
"""

import argparse
import io
import itertools
import random
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from chromium import Browser, chromium
from PIL import Image
from servers import running

from benchmarks import results
from benchmarks.facts import ROOT

RESULT = Path(__file__).parent / "heat_map.json"
SAMPLE = ROOT / "data" / "fashion-mini.zip"
SURE = 0.8
SCRIPT = """
const { getModel, infer } = await import("/page/api.js");
const { occlusion } = await import("/page/heat.js");
const { modelView } = await import("/page/view.js");
const model = await getModel();
const { pixels } = await modelView(new Blob([Uint8Array.from(arguments[0])]));
const map = await occlusion(pixels, model, (images) => infer(model, images), () => {});
return { label: model.classes[map.best], probability: map.probability, heat: [...map.heat], size: model.size };
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="models:/visionpipe@champion")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    images, dice = read_sample(), random.Random(options.seed)
    rows: list[dict[str, Any]] = []
    with running(options.model) as server, chromium() as browser:
        browser.open(server.port)
        model = server.get("/model").json
        for first, second in itertools.permutations(sorted(images), 2):
            for way in ("beside", "above"):
                picture = pasted(dice.choice(images[first]), dice.choice(images[second]), way)
                rows.append({"first": first, "second": second, "way": way} | look(browser, picture, way))
    content = {
        "model": model["name"],
        "version": model["version"],
        "artifact_sha256": model["lineage"]["artifact_sha256"],
        "test_accuracy": model["metrics"].get("test.accuracy"),
        "seed": options.seed,
        "rows": rows,
    }
    results.write(RESULT, content)
    for line in summary(rows):
        print(line)


def read_sample() -> dict[str, list[np.ndarray]]:
    """Returns the test images by class."""
    images: dict[str, list[np.ndarray]] = {}
    with zipfile.ZipFile(SAMPLE) as archive:
        for name in sorted(archive.namelist()):
            if name.startswith("test/") and name.endswith(".png"):
                image = np.array(Image.open(io.BytesIO(archive.read(name))).convert("RGB"))
                images.setdefault(name.split("/")[1], []).append(image)
    return images


def pasted(one: np.ndarray, other: np.ndarray, way: str) -> bytes:
    """Returns a PNG of the left half of one image and the right half of the other, or of upper and lower half."""
    image, middle = one.copy(), len(one) // 2
    if way == "beside":
        image[:, middle:] = other[:, middle:]
    else:
        image[middle:] = other[middle:]
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def look(browser: Browser, picture: bytes, way: str) -> dict[str, Any]:
    """Returns the answer, and the share of all heat in favour of it that lies in the first half."""
    seen = browser.run(SCRIPT, list(picture))
    size = seen["size"]["height"], seen["size"]["width"]
    heat = np.reshape(seen["heat"], size).clip(0)
    half = heat[:, : size[1] // 2] if way == "beside" else heat[: size[0] // 2]
    share = float(half.sum() / heat.sum()) if heat.any() else 0.5
    return {
        "label": seen["label"],
        "probability": round(seen["probability"], 4),
        "first_half": round(share, 4),
    }


def summary(rows: list[dict[str, Any]]) -> list[str]:
    named = [row for row in rows if row["label"] in (row["first"], row["second"])]
    lines = [f"{len(rows)} pictures, {len(named)} answered with one of their two classes"]
    for least in (0.0, 0.5, SURE):
        sure = [row for row in named if row["probability"] >= least]
        right = sum((row["first_half"] > 0.5) == (row["label"] == row["first"]) for row in sure)
        lines.append(
            f"probability {least:g} or more: most heat lies in the right half in {right} of {len(sure)}"
        )
    return lines


if __name__ == "__main__":
    main()
