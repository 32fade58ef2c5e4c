"""Where a checkpoint comes from: an address to a local file. Imports no framework."""

import os
import urllib.parse
from pathlib import Path

from visionpipe.errors import WeightsError
from visionpipe.files import write_bytes
from visionpipe.models.known import KERASHUB_PRESETS, known
from visionpipe.weights.checkpoint import Checkpoint
from visionpipe.weights.download import NotFound, check_sha256, fetch

HUGGING_FACE = "https://huggingface.co"
KAGGLE = "https://www.kaggle.com"
SAFETENSORS, TORCH_BIN = "model.safetensors", "pytorch_model.bin"


def resolve(source: str | Path, *, sha256: str | None = None, offline: bool = False) -> Checkpoint:
    """The checkpoint at `source`, on this disk: downloads it where it is not in the cache.

    Args:
        source: a path; a URL; `hf:OWNER/REPO[@REVISION][/FILE]`; `timm:NAME`; `kerashub:PRESET`;
            `models:/NAME@alias` or `models:/NAME/VERSION` of the tracking store; or a name of the table that
            `visionpipe models` prints.
        sha256: as in `load_weights`.

    Raises:
        WeightsError: there is no such file, or it is another one.
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
    checkpoint = Checkpoint(os.fspath(source), path)
    if path.is_dir():
        if sha256 and not checkpoint.sha256.startswith(sha256.lower()):
            raise WeightsError(f"{source} has sha256 {checkpoint.sha256}, expected {sha256}")
    elif kind not in ("http", "https", "hf", "timm"):
        check_sha256(path, address, sha256)
    return checkpoint


def from_hugging_face(address: str, sha256: str | None, offline: bool) -> Path:
    """`OWNER/REPO[@REVISION][/FILE]`; without a file, the weights under the hub's usual names. What says how
    images are to be prepared is downloaded beside them.
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
    """The preset's files in one folder, that of its backbone. `preset` may be a folder, too."""
    if Path(preset).is_dir():
        return Path(preset)
    if preset not in KERASHUB_PRESETS:
        raise WeightsError(
            f"kerashub:{preset}: known are a preset's folder and {', '.join(KERASHUB_PRESETS)}"
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
    """Puts the file behind `url` into the folder of `path`. Many repositories have no such file, which is
    noted there, so that it is asked for once.
    """
    target = path.parent / url.rpartition("/")[2]
    absent = target.with_name(f".{target.name}.absent")
    if target.is_file() or absent.exists():
        return
    try:
        write_bytes(target, fetch(url, offline=offline).read_bytes())
    except NotFound:
        absent.touch()
