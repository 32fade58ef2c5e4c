"""How often the page's heat map lights what the answer names, on pictures pasted together from two classes.

    make repro                                    # the champion, trained on the sample
    python benchmarks/heat_map.py                 # or another MODEL as for `visionpipe serve`; needs Chromium

For every ordered pair of classes two pictures of half of one test image and half of another, side by side and one
above the other. The page's own code asks a real server. Where the answer is one of the two classes, the heat map is
right if most of its heat lies in that class's half. A half of a picture is not always enough to know it by, so the
result is given for all of these answers and for those with a probability of 0.8 or more. Results go to
benchmarks/heat_map.json.
"""

import argparse
import io
import itertools
import json
import random
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "shared"))
from chromium import Browser, chromium  # noqa: E402
from servers import running  # noqa: E402

RESULT = ROOT / "benchmarks" / "heat_map.json"
SAMPLE = ROOT / "data" / "fashion-mini.zip"
SURE = 0.8
SCRIPT = """
const { getModel, infer } = await import("/page/api.js");
const { occlusion } = await import("/page/heat.js");
const { modelView } = await import("/page/view.js");
const model = await getModel();
const { pixels } = await modelView(new Blob([Uint8Array.from(arguments[0])]));
const found = await occlusion(pixels, model, (images) => infer(model, images), () => {});
return { label: model.classes[found.best], probability: found.probability, heat: [...found.heat], size: model.size };
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
    RESULT.write_text(json.dumps(content, indent=1) + "\n")
    for line in summary(rows):
        print(line)


def read_sample() -> dict[str, list[np.ndarray]]:
    """Test images by class."""
    found: dict[str, list[np.ndarray]] = {}
    with zipfile.ZipFile(SAMPLE) as archive:
        for name in sorted(archive.namelist()):
            if name.startswith("test/") and name.endswith(".png"):
                image = np.array(Image.open(io.BytesIO(archive.read(name))).convert("RGB"))
                found.setdefault(name.split("/")[1], []).append(image)
    return found


def pasted(one: np.ndarray, other: np.ndarray, way: str) -> bytes:
    """A PNG file: the left half of one image beside the right half of the other, or the upper above the lower."""
    image, middle = one.copy(), len(one) // 2
    if way == "beside":
        image[:, middle:] = other[:, middle:]
    else:
        image[middle:] = other[middle:]
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def look(browser: Browser, picture: bytes, way: str) -> dict[str, Any]:
    """The answer, and the first half's part of all heat that is for it."""
    found = browser.run(SCRIPT, list(picture))
    size = found["size"]["height"], found["size"]["width"]
    heat = np.reshape(found["heat"], size).clip(0)
    half = heat[:, : size[1] // 2] if way == "beside" else heat[: size[0] // 2]
    share = float(half.sum() / heat.sum()) if heat.any() else 0.5
    return {
        "label": found["label"],
        "probability": round(found["probability"], 4),
        "first_half": round(share, 4),
    }


def summary(rows: list[dict[str, Any]]) -> list[str]:
    named = [row for row in rows if row["label"] in (row["first"], row["second"])]
    lines = [f"{len(rows)} pictures, {len(named)} answered with one of their two classes"]
    for least in (0.0, 0.5, SURE):
        sure = [row for row in named if row["probability"] >= least]
        right = sum((row["first_half"] > 0.5) == (row["label"] == row["first"]) for row in sure)
        lines.append(f"probability {least:g} or more: the heat lies in its half in {right} of {len(sure)}")
    return lines


if __name__ == "__main__":
    main()
