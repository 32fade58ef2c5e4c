"""Downloads files into a cache: resumes interrupted downloads, checks hashes, and replaces files atomically."""

import hashlib
import http.client
import json
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

from tqdm import tqdm

from visionpipe import __version__
from visionpipe.errors import WeightsError
from visionpipe.files import exclusive, sha256_file, write_json

CHUNK = 2**20
ATTEMPTS = 4
PAUSE_SECONDS = 0.5  # before the second attempt; doubled before each later one
TIMEOUT_SECONDS = 30


class NotFound(WeightsError):
    """The server says that there is no such file."""


def cache_folder() -> Path:
    """Returns the folder that `VISIONPIPE_CACHE` names, or ~/.cache/visionpipe."""
    given = os.environ.get("VISIONPIPE_CACHE")
    return Path(given) if given else Path.home() / ".cache" / "visionpipe"


def is_offline() -> bool:
    """Whether the environment variable `VISIONPIPE_OFFLINE` forbids downloads."""
    return os.environ.get("VISIONPIPE_OFFLINE", "0") not in ("", "0", "false")


def fetch(url: str, *, sha256: str | None = None, offline: bool = False) -> Path:
    """Returns the file behind `url`, from the cache if it is there and unchanged, else after a download.

    For each URL the cache has a folder with the file and `source.json`, which contains the URL and the sha256.

    Args:
        sha256: the expected hash, or its first digits.
        offline: use the cache only.

    Raises:
        NotFound: the server has no such file.
        WeightsError: the network or the server fails, or the file has another hash.
    """
    parts = urllib.parse.urlsplit(url)
    name = urllib.parse.unquote(Path(parts.path).name) or "download"
    folder = cache_folder() / hashlib.sha256(url.encode()).hexdigest()[:16]
    path = folder / Path(name).name
    with exclusive(folder / ".lock", f"waiting for another process that downloads {name}"):
        if path.is_file() and unchanged(path):
            check_sha256(path, url, sha256)
            return path
        if offline or is_offline():
            raise WeightsError(
                f"{url} is not in the cache {cache_folder()}, and offline mode is on: turn it off to download the file"
            )
        unfinished = path.with_name(f"{path.name}.part")
        download(url, unfinished)
        try:
            check_sha256(unfinished, url, sha256)
        except WeightsError:
            unfinished.unlink()
            raise
        write_json(folder / "source.json", {"url": url, "sha256": sha256_file(unfinished)})
        unfinished.replace(path)
    return path


def unchanged(path: Path) -> bool:
    """Whether a cached file still has the hash with which it was downloaded."""
    try:
        expected = json.loads((path.parent / "source.json").read_text())["sha256"]
    except (OSError, ValueError, LookupError, TypeError):
        return False
    return bool(sha256_file(path) == expected)


def check_sha256(path: Path, source: str, expected: str | None) -> None:
    """Raises WeightsError if the file has another hash; `expected` may be the first digits only."""
    if expected is None:
        return
    actual = sha256_file(path)
    if not actual.startswith(expected.lower()):
        raise WeightsError(
            f"{source} has sha256 {actual}, expected {expected}: another file, or a damaged one"
        )


def download(url: str, unfinished: Path) -> None:
    """Downloads a file to `unfinished`, resumes where that ends, and tries again when the connection breaks."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            transfer(url, unfinished)
            return
        except urllib.error.HTTPError as error:
            if error.code == 404:
                raise NotFound(f"{url} does not exist (404)") from None
            if error.code < 500 or attempt == ATTEMPTS:
                raise WeightsError(f"{url} cannot be downloaded: {error.code} {error.reason}") from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            if isinstance(error, ValueError) or attempt == ATTEMPTS:
                done = unfinished.stat().st_size if unfinished.exists() else 0
                resume = (
                    f"; {done / 2**20:.1f} MiB are stored, and the next try resumes there" if done else ""
                )
                raise WeightsError(f"{url} cannot be downloaded: {reason(error)}{resume}") from None
        time.sleep(PAUSE_SECONDS * 2 ** (attempt - 1))


def reason(error: Exception) -> str:
    """Describes an error of the network."""
    return str(getattr(error, "reason", "") or error) or type(error).__name__


def transfer(url: str, unfinished: Path) -> None:
    """Requests the rest of a file once. The server resumes only if its tag of the file is still the same."""
    tag_file = unfinished.with_name(f"{unfinished.name}.tag")
    done = unfinished.stat().st_size if unfinished.exists() and tag_file.exists() else 0
    headers = {"User-Agent": f"visionpipe/{__version__}", "Accept-Encoding": "identity"}
    if done:
        headers |= {"Range": f"bytes={done}-", "If-Range": tag_file.read_text()}
    request = urllib.request.Request(url, headers=headers)
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS)  # nosec B310: the user's own URL
    except urllib.error.HTTPError as error:
        if error.code == 416:  # the file ends here, or it has changed
            unfinished.unlink(missing_ok=True)
            raise ConnectionError("the server cannot resume the download") from error
        raise
    with response:
        if response.status != 206:
            done = 0
        tag = response.headers.get("ETag") or response.headers.get("Last-Modified")
        if tag and not tag.startswith("W/"):
            tag_file.write_text(tag)
        else:
            tag_file.unlink(missing_ok=True)
        length = response.headers.get("Content-Length")
        total = done + int(length) if length else None
        name = unfinished.name.removesuffix(".part")
        with (
            unfinished.open("ab" if done else "wb") as file,
            tqdm(desc=name, total=total, initial=done, unit="B", unit_scale=True, disable=None) as bar,
        ):
            while chunk := response.read(CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
            file.flush()
            os.fsync(file.fileno())
    if total is not None and unfinished.stat().st_size != total:
        raise ConnectionError("the connection broke")
    tag_file.unlink(missing_ok=True)
