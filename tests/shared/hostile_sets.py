"""Makes folders and archives of hostile files, whose names and links lead out of them.

`watched_prepare` runs `prepare` in a subprocess, and reports which files it opens and writes. `measure_bombs` measures,
in another subprocess, time and memory for decoding bombs.
"""

import contextlib
import io
import json
import os
import subprocess
import sys
import tarfile
import unicodedata
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from hostile import NOISE, Case, encode, every_case
from repository import CHECKOUT
from servers import SIZE

from visionpipe.artifact.classifier import Classifier
from visionpipe.data.frame import frame
from visionpipe.data.prepared import SPLITS

CLASSES = ("one", "two")
SECRET = encode(255 - NOISE, "PNG")  # a picture outside of the folder, which no prepared array may contain
GOOD = encode(NOISE, "PNG")
ODD_NAMES = {
    "newline": "line\nfeed.png",
    "NFC": unicodedata.normalize("NFC", "é.png"),
    "NFD": unicodedata.normalize("NFD", "é.png"),
    "quotes": 'it\'s "a" $(name) & `more`.png',
    "two dots within": "a..b.png",
    "right to left": "‮gnp.png",
}

WATCHED = """
import json, os, sys
opened, changed = set(), set()
CHANGES = {"os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.symlink", "os.link", "shutil.move", "os.truncate"}

def watch(event, arguments):
    if event == "open" and isinstance(arguments[0], str | bytes):
        writing = arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        (changed if writing else opened).add(os.path.realpath(os.fsdecode(arguments[0])))
    elif event in CHANGES:
        changed.update(os.path.realpath(os.fsdecode(a)) for a in arguments[:2] if isinstance(a, str | bytes))

sys.addaudithook(watch)
from visionpipe.project.params import Params
from visionpipe.data.config import PrepareConfig
from visionpipe.stages.prepare import prepare
source, path, height, width = sys.argv[1:]
prepare(Params(PrepareConfig(source, path, size=(int(height), int(width))), models={}))
print(json.dumps([sorted(opened), sorted(changed)]))
"""


def write_folder(folder: Path, outside: Path) -> int:
    """Writes all cases for each class, unusual names and links; returns the number of entries that are not folders."""
    outside.mkdir(parents=True)
    (outside / "secret.png").write_bytes(SECRET)
    for name in CLASSES:
        (folder / name).mkdir(parents=True)
        for case in every_case():
            (folder / name / case.file).write_bytes(case.data)
    one = folder / CLASSES[0]
    for name in ODD_NAMES.values():
        (one / name).write_bytes(GOOD)
    Path(os.fsdecode(os.fsencode(one) + b"/\xff.png")).write_bytes(GOOD)
    (one / "link out.png").symlink_to(outside / "secret.png")
    (one / "link up.png").symlink_to(f"../../{outside.name}/secret.png")
    (folder / "three").symlink_to(outside)
    (one / "loop").symlink_to(folder)
    (one / "itself.png").symlink_to("itself.png")
    (one / "nowhere.png").symlink_to("nothing")
    os.mkfifo(one / "pipe.png")  # opening it blocks for ever
    write_tar(one / "slip.tar", outside)
    with zipfile.ZipFile(one / "slip.zip", "w") as archive:
        archive.writestr("../../outside/slipped.png", GOOD)
    return len(CLASSES) * len(every_case()) + len(ODD_NAMES) + 10


def write_zip(path: Path, outside: Path) -> int:
    """Writes an archive like the folder of `write_folder`; returns the number of its members."""
    outside.mkdir(parents=True)
    (outside / "secret.png").write_bytes(SECRET)
    with zipfile.ZipFile(path, "w") as archive:
        for name in CLASSES:
            for case in every_case():
                archive.writestr(f"{name}/{case.file}", case.data)
        for name in ODD_NAMES.values():
            archive.writestr(f"one/{name}", GOOD)
        for name in (
            "../slipped.png",
            f"one/../../{outside.name}/slipped.png",
            str(outside / "slipped.png"),
            "C:/slipped.png",
            "one/../two/inside.png",
        ):
            archive.writestr(name, GOOD)
        link = zipfile.ZipInfo("one/link.png")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, str(outside / "secret.png"))
        return len(archive.infolist())


def write_tar(path: Path, outside: Path) -> None:
    with tarfile.open(path, "w") as archive:
        for name in (f"../{outside.name}/slipped.png", str(outside / "slipped.png")):
            member = tarfile.TarInfo(name)
            member.size = len(GOOD)
            archive.addfile(member, io.BytesIO(GOOD))


def watched_prepare(work: Path, source: str, path: Path) -> dict[str, Any]:
    """Runs `prepare` in `work`.

    Returns the manifest, the pixels by file name, and the real paths of the files that it opened and changed.
    """
    command = [sys.executable, "-c", WATCHED, source, str(path), *map(str, SIZE)]
    done = subprocess.run(
        command,
        cwd=work,
        env=os.environ | {"PYTHONPATH": str(CHECKOUT), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    opened, changed = json.loads(done.stdout.splitlines()[-1])
    prepared = work / "data" / "prepared"
    pixels = {}
    for split in SPLITS:
        files = (prepared / f"files-{split}.jsonl").read_text().splitlines()
        images = np.load(prepared / f"images-{split}.npy")
        pixels |= {json.loads(file): image for file, image in zip(files, images, strict=True)}
    manifest = json.loads((prepared / "manifest.json").read_text())
    return {"manifest": manifest, "pixels": pixels, "opened": opened, "changed": changed}


def judge(result: dict[str, Any], found: int, work: Path, outside: Path) -> dict[str, int]:
    """Counts errors by kind; all counts should be 0. `found`: the number of files that `prepare` should find."""
    manifest, pixels = result["manifest"], result["pixels"]
    reasons = {row["path"]: row["reason"] for row in manifest["quarantined"]}
    wrong = {"lost": abs(found - manifest["found"]) + abs(manifest["found"] - len(pixels) - len(reasons))}
    wrong |= {"wrong pixels": 0, "kept, but bad": 0, "refused, but valid": 0}
    for name in CLASSES:
        for case in every_case():
            file, valid = f"{name}/{case.file}", isinstance(case.expected, np.ndarray)
            if valid and file in pixels:
                right = np.array_equal(pixels[file], frame(case.expected, SIZE))
                wrong["wrong pixels"] += not right
            wrong["refused, but valid"] += valid and file in reasons
            wrong["kept, but bad"] += not valid and file in pixels
    secret = frame(255 - NOISE, SIZE)
    wrong["secret pictures"] = sum(np.array_equal(image, secret) for image in pixels.values())
    wrong["read outside"] = sum(Path(path).is_relative_to(outside) for path in result["opened"])
    harmless = ("/dev/", "/proc/")
    wrong["written outside"] = sum(
        not Path(path).is_relative_to(work) and not path.startswith(harmless) for path in result["changed"]
    )
    with contextlib.suppress(FileNotFoundError):
        wrong["written outside"] += len(set(os.listdir(outside)) - {"secret.png"})
    return wrong


def is_right(entry: dict[str, Any], case: Case, classifier: Classifier) -> bool:
    """Whether an entry of an answer is the correct error, or has the probabilities for the correct pixels."""
    if isinstance(case.expected, str):
        return bool(entry.get("error", {}).get("code") == case.expected)
    expected = classifier.probabilities(frame(case.expected, classifier.size)[None])[0]
    said = [entry["probabilities"][label] for label in classifier.labels] if "probabilities" in entry else []
    return len(said) == len(expected) and np.allclose(said, expected, atol=1e-6)


MEASURE = r"""
import ctypes, json, pathlib, re, sys, time
sys.path.insert(0, sys.argv[1])
from hostile import bombs
from visionpipe.data.decode import decode_image
from visionpipe.errors import ImageError

def kibibytes(field):
    return int(re.search(field + r":\s+(\d+)", pathlib.Path("/proc/self/status").read_text())[1])

def decode(data):
    start = time.perf_counter()
    try:
        decode_image(data)
    except ImageError:
        pass
    return time.perf_counter() - start

decode(b"P5 1 1 255\n0")
cases, rows = bombs(), []
give_back = getattr(ctypes.CDLL(None), "malloc_trim", lambda _: 0)
for case in cases:
    give_back(0)  # memory that was freed after making the files; reusing it would not be measured
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = kibibytes("VmRSS")
    first = decode(case.data)
    peak = kibibytes("VmHWM") - before
    rows.append([case.name, len(case.data), min(first, decode(case.data), decode(case.data)), peak / 1024])
print(json.dumps(rows))
"""


def measure_bombs() -> list[list[Any]]:
    """Returns for each bomb its name, bytes, seconds to decode (the best of three) and MiB of extra memory."""
    command = [sys.executable, "-c", MEASURE, str(CHECKOUT / "tests" / "shared")]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, check=True)
    return json.loads(done.stdout)
