"""Finds or downloads the checkpoint behind an address. Imports no framework."""

import os
import urllib.parse
from pathlib import Path

from visionpipe.errors import WeightsError
from visionpipe.files import write_bytes
from visionpipe.models.known import KERASHUB_PRESETS, known
from visionpipe.weights.checkpoint import PretrainedCheckpoint
from visionpipe.weights.download import NotFound, check_sha256, fetch

HUGGING_FACE = "https://huggingface.co"
KAGGLE = "https://www.kaggle.com"
SAFETENSORS, TORCH_BIN = "model.safetensors", "pytorch_model.bin"


def resolve(source: str | Path, *, sha256: str | None = None, offline: bool = False) -> PretrainedCheckpoint:
    """Returns the checkpoint at `source` as a local file, and downloads it first if it is not in the cache.

    Args:
        source: a path; a URL; `hf:OWNER/REPO[@REVISION][/FILE]`; `timm:NAME`; `kerashub:PRESET`;
            `models:/NAME@alias` or `models:/NAME/VERSION` of the tracking store; or a name that `visionpipe models`
            lists.
        sha256: the expected hash, or its first digits.
        offline: use the cache only.

    Raises:
        WeightsError: the file does not exist, cannot be downloaded, or has another hash.
    """
    address = os.fspath(source)
    row = known(address)
    if row is not None:
        sha256 = sha256 or row.sha256
        address = row.source
    kind, _, rest = address.partition(":")
    if kind in ("http", "https"):
        path = fetch(address, sha256=sha256, offline=offline)
    elif kind == "hf":
        path = from_hugging_face(rest, sha256, offline)
    elif kind == "timm":
        path = from_hugging_face(f"timm/{rest}", sha256, offline)
    elif kind == "kerashub":
        path = from_kerashub(rest, offline)
    elif kind == "models":
        from visionpipe.tracking.trained import download_trained

        path = download_trained(address)
    else:
        path = Path(address)
        if not path.exists():
            raise WeightsError(
                f"{address}: no such file; other sources are URLs, hf:REPO, timm:NAME, kerashub:PRESET, "
                f"models:/NAME@alias and the names that visionpipe models lists"
            )
    checkpoint = PretrainedCheckpoint(os.fspath(source), path)
    if path.is_dir():
        if sha256 and not checkpoint.sha256.startswith(sha256.lower()):
            raise WeightsError(
                f"{source} has sha256 {checkpoint.sha256}, expected {sha256}: another checkpoint, or a damaged one"
            )
    elif kind not in ("http", "https", "hf", "timm"):
        check_sha256(path, address, sha256)
    return checkpoint


def from_hugging_face(address: str, sha256: str | None, offline: bool) -> Path:
    """Downloads `OWNER/REPO[@REVISION][/FILE]`, with the files that say how images are prepared for it.

    Without a file it downloads the weights under one of the hub's usual names.
    """
    owner, _, rest = address.partition("/")
    repository, _, file = rest.partition("/")
    repository, _, revision = repository.partition("@")
    if not owner or not repository:
        raise WeightsError(f"hf:{address}: expected hf:OWNER/REPO or hf:OWNER/REPO/FILE")
    host = os.environ.get("HF_ENDPOINT", HUGGING_FACE).rstrip("/")
    base = f"{host}/{owner}/{repository}/resolve/{revision or 'main'}"
    if file:
        path = fetch(f"{base}/{urllib.parse.quote(file)}", sha256=sha256, offline=offline)
    else:
        try:
            path = fetch(f"{base}/{SAFETENSORS}", sha256=sha256, offline=offline)
        except NotFound:
            path = fetch(f"{base}/{TORCH_BIN}", sha256=sha256, offline=offline)
    for companion in ("config.json", "preprocessor_config.json"):
        beside(path, f"{base}/{companion}", offline)
    return path


def from_kerashub(preset: str, offline: bool) -> Path:
    """Returns the folder of a preset: `preset` itself if it is a folder, else a download of all its files."""
    if Path(preset).is_dir():
        return Path(preset)
    if preset not in KERASHUB_PRESETS:
        raise WeightsError(
            f"kerashub:{preset}: expected the folder of a preset, or one of {', '.join(KERASHUB_PRESETS)}"
        )
    host = os.environ.get("KAGGLE_API_ENDPOINT", KAGGLE).rstrip("/")
    base = f"{host}/api/v1/models/{KERASHUB_PRESETS[preset]}/download"
    folder = fetch(f"{base}/model.weights.h5", offline=offline).parent
    for companion in (
        "config.json",
        "task.json",
        "task.weights.h5",
        "preprocessor.json",
        "image_converter.json",
    ):
        beside(folder / "model.weights.h5", f"{base}/{companion}", offline)
    return folder


def beside(path: Path, url: str, offline: bool) -> None:
    """Downloads the file behind `url` into the folder of `path`.

    Many repositories have no such file. A hidden file then records that, so that it is requested only once.
    """
    target = path.parent / url.rpartition("/")[2]
    absent = target.with_name(f".{target.name}.absent")
    if target.is_file() or absent.exists():
        return
    try:
        write_bytes(target, fetch(url, offline=offline).read_bytes())
    except NotFound:
        absent.touch()
